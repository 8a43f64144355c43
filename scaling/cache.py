"""Where what can be made again is kept: token shards, compiled programs, plans."""

import os


def root() -> str:
    """``$SCALING_CACHE``, or a folder in the user's home; as written, not expanded."""
    return os.environ.get("SCALING_CACHE") or "~/.cache/scaling"
