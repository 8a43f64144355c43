"""The MaxText side of ``scaling bench tpu --peer``: compiles MaxText's train step for a TPU topology that is not there.

A program of its own, run by an interpreter that has MaxText (``pip install 'maxtext[tpu]'``, Python 3.12): one JSON
request in its arguments, one JSON line at the end of its output. Nothing of this package is imported, so that
interpreter needs none of ours. The compiler is whatever ``TPU_LIBRARY_PATH`` names, so both can have the same.

MaxText's own functions build and compile the step, as its ``train_compile`` does; here its text is kept, too.
"""

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Answers the request ``{"knobs": [...], "text": path}`` with seconds, bytes a device and the version."""
    request = json.loads(sys.argv[1])
    with contextlib.redirect_stdout(sys.stderr):  # MaxText talks
        try:
            answer = _compile(request["knobs"], request["text"])
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:2000]}
    print(json.dumps(answer), flush=True)


def _compile(knobs: list[str], path: str) -> dict[str, Any]:
    """Compiles MaxText's train step with its knobs (``name=value``) and writes the optimized program to ``path``."""
    import importlib.metadata

    written = Path(path).with_suffix(".written")
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={written} --xla_dump_hlo_as_text --xla_dump_hlo_pass_re=^$"
    )
    import jax
    from flax.core.spmd import logical_axis_rules
    from maxtext.configs import pyconfig
    from maxtext.trainers.pre_train import train, train_compile
    from maxtext.utils import maxtext_utils, sharding

    # As MaxText's own program sets them.
    jax.config.update("jax_default_prng_impl", "unsafe_rbg")
    os.environ["LIBTPU_INIT_ARGS"] = (
        os.environ.get("LIBTPU_INIT_ARGS", "") + " --xla_tpu_spmd_rng_bit_generator_unsafe=true"
    )
    config = pyconfig.initialize(["train_compile", *knobs])
    mesh = train_compile.get_topology_mesh(config)
    arguments, named, state, _, model = train_compile.get_shaped_inputs(mesh, config)
    params, state = sharding.maybe_update_params_sharding_with_opt(config, state)
    stored = sharding.build_zero1_input_state_mesh_shardings(config, state, params)
    batch = sharding.get_input_data_sharding(config, mesh)
    step = maxtext_utils.get_functional_train_with_signature(train.train_step, batch, stored, model, config, params)
    function, inputs, outputs, static, donated = step
    start = time.monotonic()
    compiled = train_compile.jit_and_compile(
        function,
        arguments,
        named,
        mesh,
        inputs,
        outputs,
        static,
        donated,
        config,
        logical_axis_rules(config.logical_axis_rules),
    )
    seconds = time.monotonic() - start
    Path(path).write_text(_text(compiled, written))
    memory = compiled.memory_analysis()
    return {
        "seconds": seconds,
        "bytes": memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
        + max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes),
        "version": f"MaxText {importlib.metadata.version('maxtext')}, JAX {jax.__version__}",
    }


def _text(compiled: Any, folder: Path) -> str:
    """As JAX prints it, else as the compiler wrote it; see ``scaling.plan.compiled``."""
    import jax

    try:
        text: str = compiled.as_text()
    except jax.errors.JaxRuntimeError:
        written = sorted(folder.glob("*train_step*.after_codegen.txt"), key=lambda path: path.stat().st_size)
        if not written:
            raise
        text = written[-1].read_text()
    return text


if __name__ == "__main__":
    main()
