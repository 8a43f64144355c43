"""Folders of results that appear whole."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from scaling import durable


@contextlib.contextmanager
def whole(final: Path) -> Iterator[Path]:
    """Makes an empty folder beside ``final``, which takes its name, and the place of what was there, at the end.

    Nothing is left of it if an error is raised.

    Raises:
        OSError: cannot write.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".tmp", dir=final.parent))
    try:
        made = temporary / final.name
        made.mkdir()
        yield made
        if final.exists():
            final.rename(temporary / "old")
        made.rename(final)
        durable.sync_folders([final.parent])
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
