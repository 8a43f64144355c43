"""The C allocator's settings for training on the CPU."""

import ctypes
import sys

# Keys of mallopt(3) in glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> None:
    """Lets the process keep the memory that XLA's CPU client frees after each step, instead of faulting it in again.

    XLA allocates a step's temporaries anew each time, glibc maps and unmaps blocks of that size, and the
    kernel then clears every page at first touch: a quarter of the CPU time of a small model. One heap that
    is never trimmed gave 1.5 times the tokens a second (docs/benchmarks.md). Does nothing without glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for key, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_ARENA_MAX, 1), (_TOP_PAD, 64 << 20)):
        mallopt(key, value)
