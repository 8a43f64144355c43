"""Writes files so that a kill, a full disk or a loss of power leaves the old file or the new one, never a part of it.

Paths may be remote (``gs://...``): a file is then replaced by one put, which needs no temporary name and no sync
(``object_store``).
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from etils import epath

from scaling import background
from scaling.object_store import is_remote
from scaling.paths import must_lead_somewhere


def replace_text(path: epath.PathLike, text: str, synced: bool = False, writer: str = "") -> None:
    """Replaces a file, so that a reader sees all of the old text or all of the new one.

    A local file is written under a temporary name and renamed; an object is put.

    Args:
        path: of the file; its folder exists.
        text: the whole content.
        synced: return only when the file would survive a loss of power.
        writer: distinguishes this process, if several may write the file at the same time.

    Raises:
        OSError: the file cannot be written; the message names it. The old file is unchanged.
    """
    path = epath.Path(path)
    if is_remote(path):
        path.write_text(text)
        return
    partial = path.with_name(".".join(filter(None, (path.name, writer, "partial"))))
    with naming(path):
        partial.write_text(text)
        if synced:
            sync([partial])
        partial.replace(path)
    if synced:
        sync_folders([path.parent])


def replace_text_later(path: epath.PathLike, text: str) -> None:
    """As ``replace_text``, but a remote file is written in the background; ``background.settle`` waits for it.

    Raises:
        OSError: this file, or a remote one before, cannot be written.
    """
    if is_remote(path):
        background.later(str(path), lambda: replace_text(path, text))
    else:
        replace_text(path, text)


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary name beside a local file. What was written there takes the file's place at the end, synced.

    Nothing is left of it if an error is raised. Several processes may write the same file at the same time.

    Raises:
        OSError: cannot write.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        sync([partial])
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def try_to_write(folder: epath.PathLike, writer: int) -> None:
    """Tests that a folder can be written to: makes the folder if necessary and a file in it, and deletes the file.

    Args:
        folder: local or remote.
        writer: number of this process among those that may try at the same time.

    Raises:
        OSError: one of the three cannot be done.
    """
    folder = epath.Path(folder)
    must_lead_somewhere(folder)
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".writable-{writer}"
    probe.write_text("")
    probe.unlink(missing_ok=True)


def sync(files: Iterable[epath.PathLike]) -> None:
    """Makes the bytes of files survive a loss of power (their names need ``sync_folders``)."""
    for path in files:
        if not is_remote(path):
            _fsync(path)


def sync_folders(folders: Iterable[epath.PathLike]) -> None:
    """Makes the names in folders survive a loss of power, if the file system supports it; some of networks do not."""
    for path in folders:
        if not is_remote(path):
            with contextlib.suppress(OSError):
                _fsync(path)


def _fsync(path: epath.PathLike) -> None:
    descriptor = os.open(Path(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(path: epath.PathLike) -> None:
    """Tests whether a file can be written or appended to, before the work whose result will be written there.

    Nothing is left behind. If the folder of the file does not exist, the nearest existing folder above it is tested.

    Raises:
        OSError: it cannot; the message names the file.
    """
    if is_remote(path):
        try_to_write(epath.Path(path).parent, os.getpid())
        return
    path = Path(path)
    try:
        if path.exists():
            with path.open("ab"):
                pass
        else:
            try_to_write(next(folder for folder in path.absolute().parents if folder.exists()), os.getpid())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None  # Python chooses the subclass by errno


@contextlib.contextmanager
def naming(path: epath.PathLike) -> Iterator[None]:
    """Adds the name of a file or folder to errors that have none, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
