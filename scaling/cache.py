"""The folder for what can be made again: token shards, compiled programs, plans."""

import contextlib
import functools
import os
import stat
import sys
import tempfile
from pathlib import Path

from scaling.paths import expanded, is_url, must_be_utf8


def root() -> Path:
    """The cache: ``$SCALING_CACHE``, else ``~/.cache/scaling``, else a folder of this user among the temporary files.

    The last is for users without a home folder, such as services, and containers that run under a bare user number.

    Raises:
        ValueError: the name is not UTF-8, or the folder is not local.
    """
    named = os.environ.get("SCALING_CACHE") or ""
    if is_url(named):
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
    """A folder that only this user can write to, because the compiled programs in it are executed later."""
    folder = Path(tempfile.gettempdir()) / f"scaling-{os.getuid()}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022:
            return folder
    return Path(tempfile.mkdtemp(prefix="scaling-"))
