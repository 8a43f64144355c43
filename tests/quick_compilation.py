"""Compilation as quick as can be: it takes most of the time of the tests, and their programs run for a moment only.

Runs are compared with runs of the same programs, or within tolerances that hold for any correct compiler. What users
compile is seen by ``make demo``, and the TPU's compiler by ``make plan-check``.
"""

import os

import jax

# No passes of LLVM, and the older of two code generators (which JAX 0.11 may not have): together 2.3 times as quick.
# A program is compiled in one piece: to cut it up for more threads takes 8% more of the processors' time.
FLAGS = ["--xla_backend_optimization_level=0"]
USUAL_CODE: dict[str, bool] = {}  # compiler options of a program that is to have the usual code generator all the same
if jax.__version_info__[:2] == (0, 10):
    FLAGS += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
    USUAL_CODE["xla_cpu_use_fusion_emitters"] = True


def xla_flags() -> str:
    """The value of ``XLA_FLAGS`` with which quick programs are compiled; what it already holds comes last."""
    return " ".join([*FLAGS, os.environ.get("XLA_FLAGS", "")]).strip()
