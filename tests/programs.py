"""Programs that tests start, several of one kind: what one has compiled, the next reads."""

import os
from pathlib import Path

import jax

from tests.quick_compilation import xla_flags


def environment() -> dict[str, str]:
    """For ``subprocess``: the session's cache of compiled programs (tests/conftest.py), and quick compilation."""
    # `make faults` has no such cache, only a folder for all.
    compiled = jax.config.jax_compilation_cache_dir or Path(os.environ["SCALING_CACHE"]) / "programs"
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "0",
        "XLA_FLAGS": xla_flags(),
    }
