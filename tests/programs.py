"""Programs that tests start, several of one kind: what one has compiled, the next reads."""

import os
from pathlib import Path


def environment() -> dict[str, str]:
    """For ``subprocess``: a cache of all compiled programs beside the session's other caches, and quick compilation."""
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(Path(os.environ["SCALING_CACHE"]) / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
