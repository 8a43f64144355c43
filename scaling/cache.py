"""Where what can be made again is kept: token shards, compiled programs, plans."""

import contextlib
import functools
import os
import stat
import sys
import tempfile
from pathlib import Path

from scaling.paths import expanded, must_be_utf8


def root() -> Path:
    """``$SCALING_CACHE``, else ``~/.cache/scaling``, else a folder of this user's among the temporary files.

    The last is for users without a home: containers with a number for a user, services.

    Raises:
        ValueError: not a name of UTF-8, or not a local folder.
    """
    named = os.environ.get("SCALING_CACHE") or ""
    if "://" in named:
        raise ValueError(f"SCALING_CACHE={named} must be a local folder")
    path = Path(expanded(named) or _usual())
    must_be_utf8("the cache (SCALING_CACHE)", str(path))
    return path


@functools.cache
def _usual() -> str:
    home = expanded("~")
    folder = Path(home) / ".cache" / "scaling"
    if home != "~":
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return str(folder)
    temporary = _temporary()
    print(f"the home folder cannot be written; caches go to {temporary} (SCALING_CACHE names another)", file=sys.stderr)
    return str(temporary)


def _temporary() -> Path:
    """A folder that only this user can write to: what is compiled is run again."""
    folder = Path(tempfile.gettempdir()) / f"scaling-{os.getuid()}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022:
            return folder
    return Path(tempfile.mkdtemp(prefix="scaling-"))
