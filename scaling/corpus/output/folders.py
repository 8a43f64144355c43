"""Folders of results that appear whole."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from scaling import durable


@contextlib.contextmanager
def whole(final: Path) -> Iterator[Path]:
    """Makes an empty folder beside ``final``, which takes its name, and the place of what was there, at the end.

    Nothing is left of it if an error is raised. What a killed process left of it is deleted by the next call. Only one
    process may make a folder at a time.

    Raises:
        OSError: cannot write.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.parent / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        made = temporary / final.name
        made.mkdir(parents=True)
        yield made
        if final.exists():
            final.rename(temporary / "old")
        made.rename(final)
        durable.sync_folders([final.parent])
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
