"""The lock that lets one process at a time train in a run directory. No JAX, so that a sweep can test it too.

Of a local folder it is the system's (``flock``), of a folder in an object store that of ``store_lock``.
"""

import contextlib
import fcntl
from collections.abc import Iterator

from etils import epath

from scaling.object_store import is_remote
from scaling.runs import store_lock


@contextlib.contextmanager
def only_one(run_dir: epath.Path) -> Iterator[None]:
    """Holds the run directory's lock: two trainings in one directory would undo each other's checkpoints.

    The lock of a process that ends is free, in whatever way it ends.

    Raises:
        ValueError: another process has it.
        OSError: an object store does not answer, or refuses.
    """
    busy = f"another process is training in {run_dir}; wait for it, stop it, or use another config.workdir"
    with held(run_dir / ".lock", busy):
        yield


@contextlib.contextmanager
def held(path: epath.Path, busy: str) -> Iterator[None]:
    """Holds the lock of a file, which is created if necessary.

    Raises:
        ValueError: another process has it; ``busy`` is the sentence.
        OSError: as ``only_one``.
    """
    if is_remote(path):
        with store_lock.held(path, busy):
            yield
        return
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(busy) from None
        yield


def is_locked(run_dir: epath.Path) -> bool:
    """Whether another process is training in the directory now."""
    return is_held(run_dir / ".lock")


def is_held(path: epath.Path) -> bool:
    """Whether another process holds the lock of a file."""
    if is_remote(path):
        return store_lock.is_held(path)
    if not path.exists():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
