"""The C allocator's settings for training on the CPU."""

import ctypes
import importlib.util
import os
import sys

# Keys of mallopt(3) in glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> None:
    """Where JAX will run on the CPU, keeps the memory that it frees after each step for the next one.

    XLA's CPU client allocates a step's temporaries anew each time; glibc maps and unmaps blocks of that size, and
    the kernel then clears every page at first touch: a quarter of the CPU time of a small model. One heap that is
    never trimmed gave 1.5 times the tokens a second (docs/notes/cpu_training.md).

    Call it before JAX starts its threads, since each takes an arena of its own when it first allocates. Does
    nothing without glibc, or where an accelerator's plugin is installed and the CPU is not asked for by name.
    """
    accelerator = any(importlib.util.find_spec(name) for name in ("libtpu", "jax_plugins"))
    if not sys.platform.startswith("linux") or (accelerator and os.environ.get("JAX_PLATFORMS") != "cpu"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for key, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_ARENA_MAX, 1), (_TOP_PAD, 64 << 20)):
        mallopt(key, value)
