"""A folder that appears whole or not at all."""

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from scaling import exit_codes
from scaling.object_store import StorePath
from scaling.paths import must_lead_somewhere
from scaling.runs.lock import held
from scaling.runs.paths import CONFIG

_UNFINISHED = ".unfinished"  # object in a folder of a store while it is filled; also the lock of who fills it


def check_new(target: Path) -> None:
    """Refuses a folder that holds something; what killed processes left of it does not count.

    Raises:
        FileExistsError: it holds something, or is a file.
        NotADirectoryError: a file is where a folder above it would be.
        FileNotFoundError: it is a link that leads nowhere.
    """
    must_lead_somewhere(target)
    above = next(folder for folder in target.absolute().parents if folder.exists())
    if not above.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it is a file and not a folder", str(above))
    if target.exists() and (not target.is_dir() or set(target.iterdir()) - set(_left_over(target))):
        raise FileExistsError(f"{target} exists and is not an empty folder; nothing was overwritten")


@contextlib.contextmanager
def filling_in_store(target: StorePath) -> Iterator[StorePath]:
    """The same of a folder in an object store, which is written in its place, its config.json last.

    An object in it says that it is unfinished; what a killed process left with it is deleted.

    Args:
        target: new or empty.

    Raises:
        FileExistsError: it holds something.
        ValueError: another process fills it now.
        OSError: the store does not answer, or refuses.
    """
    before = target.names()
    with _terminated(), held(target / _UNFINISHED, f"another process writes to {target} now; nothing was overwritten"):
        found = [name for name in target.names() if name != _UNFINISHED]
        if found and (CONFIG in found or _UNFINISHED not in before):
            raise FileExistsError(f"{target} exists and is not an empty folder; nothing was overwritten")
        _delete(target, found)
        try:
            yield target
        except BaseException:
            with contextlib.suppress(OSError):  # the next one will delete what is left
                _delete(target, target.names())
            raise


def _delete(folder: StorePath, names: list[str]) -> None:
    for name in names:
        if name != _UNFINISHED:
            (folder / name).unlink(missing_ok=True)


@contextlib.contextmanager
def filling(target: Path) -> Iterator[Path]:
    """A folder to write to, whose files are in ``target`` after the block; deleted if the block raises.

    It lies beside the target. In a target that exists it lies inside, because a link, the root of a file system and the
    folder in which a shell stands cannot be replaced. Its lock is held, so that those of killed processes are known.

    Args:
        target: absolute; new or empty.

    Raises:
        FileExistsError: as ``check_new``, or another process has made the target meanwhile.
    """
    check_new(target)
    for path in _left_over(target):
        shutil.rmtree(path, ignore_errors=True)
    inside = target.exists()
    partial = _place(target) / f"{_prefix(target)}{secrets.token_hex(4)}"
    with contextlib.ExitStack() as stack:
        stack.enter_context(_terminated())
        try:
            partial.mkdir(parents=True)
            descriptor = os.open(partial, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            with contextlib.suppress(OSError):  # some file systems have no locks; there nothing is cleaned up later
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            yield partial
            if inside:
                _move_out(partial, target)
            else:
                _rename(partial, target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _place(target: Path) -> Path:
    return target if target.exists() else target.parent


def _prefix(target: Path) -> str:
    return f".{target.name}.partial-"


def _left_over(target: Path) -> list[Path]:
    """Unfinished folders of this target that no process holds."""
    name = _prefix(target)
    places = {_place(target), target.parent}
    found = [path for place in places if place.is_dir() for path in place.iterdir() if path.name.startswith(name)]
    return [path for path in found if path.is_dir() and not path.is_symlink() and _is_free(path)]


def _is_free(folder: Path) -> bool:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _rename(partial: Path, target: Path) -> None:
    try:
        partial.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise FileExistsError(f"{target} exists now: another process made it; nothing was overwritten") from error


def _move_out(partial: Path, target: Path) -> None:
    """Moves all entries of a folder to the folder that it lies in, or none."""
    if others := [path.name for path in target.iterdir() if path != partial]:
        raise FileExistsError(f"{target} holds {others[0]} now, which another process made; nothing was overwritten")
    moved: list[Path] = []
    try:
        for path in list(partial.iterdir()):
            moved.append(target / path.name)
            path.rename(moved[-1])
        partial.rmdir()
    except BaseException:
        for path in moved:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM is an exception in the block, so that it cleans up as after ctrl-C."""

    def leave(*_: object) -> None:
        raise SystemExit(exit_codes.SIGTERM)

    if threading.current_thread() is not threading.main_thread():  # Python lets only that one set handlers
        yield
        return
    old = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)
