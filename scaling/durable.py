"""Writing files so that a kill, a full disk or a loss of power leaves the old one or the new one, and never half of it.

Paths may be remote (``gs://...``): object stores replace a file as a whole and keep what they have confirmed, so
nothing is synced there.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from etils import epath

from scaling.paths import must_lead_somewhere


def replace_text(path: epath.PathLike, text: str, synced: bool = False, writer: str = "") -> None:
    """Writes a file beside its place, then renames it: a reader sees all of the old text or all of the new one.

    Args:
        path: of the file; its folder exists.
        text: all that it will hold.
        synced: return only when it would survive a loss of power.
        writer: sets this process apart, where several may write the file at the same time.

    Raises:
        OSError: it cannot be written; names the file. The old one is as it was.
    """
    path = epath.Path(path)
    partial = path.with_name(".".join(filter(None, (path.name, writer, "partial"))))
    with naming(path):
        partial.write_text(text)
        if synced:
            sync([partial])
        partial.replace(path)
    if synced:
        sync_folders([path.parent])


def try_to_write(folder: epath.PathLike, writer: int) -> None:
    """Makes a folder if need be, and a file in it, which it deletes again.

    Args:
        folder: any.
        writer: number of this process among those that may try at the same time.

    Raises:
        OSError: one of the three cannot be done.
    """
    folder = epath.Path(folder)
    must_lead_somewhere(folder)
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".writable-{writer}"
    probe.write_text("")
    probe.unlink()


def sync(files: Iterable[epath.PathLike]) -> None:
    """Makes the bytes of files survive a loss of power (their names need ``sync_folders``)."""
    for path in files:
        if "://" not in str(path):
            _fsync(path)


def sync_folders(folders: Iterable[epath.PathLike]) -> None:
    """Makes the names in folders survive a loss of power, where the file system can: not every one of a network can."""
    for path in folders:
        if "://" not in str(path):
            with contextlib.suppress(OSError):
                _fsync(path)


def _fsync(path: epath.PathLike) -> None:
    descriptor = os.open(Path(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(path: epath.PathLike) -> None:
    """Tries whether a local file can be written or appended to, before work whose result will go there.

    Nothing is made: where its folder is not there yet, the nearest one that is there is tried.

    Raises:
        OSError: it cannot; names the file.
    """
    path = Path(path)
    try:
        if path.exists():
            with path.open("ab"):
                pass
        else:
            try_to_write(next(folder for folder in path.absolute().parents if folder.exists()), os.getpid())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None  # of the fitting subclass


@contextlib.contextmanager
def naming(path: epath.PathLike) -> Iterator[None]:
    """Names a file or folder in errors of writing that name none, as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
