"""Names of files and folders as users give them: expands ``~``, and refuses names that cannot be used."""

import errno
import os
from pathlib import Path


def expanded(path: str) -> str:
    """A path, a URL, a glob or a name, with a ``~`` or ``~user`` at its beginning expanded.

    A shell does this only at the beginning of a word: not in ``--output=~/x``, and not in quotes.
    """
    return os.path.expanduser(path)  # noqa: PTH111 - pathlib raises if there is no home folder, and changes slashes


def each_expanded(names: str) -> str:
    """A list of names separated by commas, each of them ``expanded``."""
    return ",".join(map(expanded, names.split(",")))


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether a path names a place by a protocol, such as ``gs://`` or ``https://``, and none of this machine."""
    return "://" in str(path)


def must_be_local(name: str, path: str | os.PathLike[str]) -> None:
    """Refuses a URL for what is written or read on this machine only.

    Args:
        name: of the option or knob, for the message.
        path: as the user gives it.

    Raises:
        ValueError: it is a URL.
    """
    if is_url(path):
        raise ValueError(f"{name}={path} must be on this machine; copy it between here and the store by other tools")


def must_be_utf8(name: str, path: str) -> None:
    """Refuses a path that cannot be written to because it is not UTF-8, which TensorStore, Arrow and others require.

    Args:
        name: of the option or knob, for the message.
        path: as Python represents it, with lone surrogates for bytes that are not UTF-8.

    Raises:
        ValueError: the path is not UTF-8.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{name}={path!r}: the name is not UTF-8, and must be; rename the folder, or use another"
        ) from None


def must_take_checkpoints(name: str, path: str) -> None:
    """Refuses the name of a run directory from which Orbax could not restore what it saved.

    Orbax searches for its files by a glob of the unquoted path, and TensorStore takes a backslash for a slash.

    Args:
        name: of the option or knob, for the message.
        path: of the run directory.

    Raises:
        ValueError: the path contains ``*``, ``?``, ``[`` or a backslash.
    """
    if found := [character for character in "*?[\\" if character in path]:
        raise ValueError(
            f"{name}={path}: no checkpoint can be saved to a folder with {' or '.join(found)} in its name; use another"
        )


def must_lead_somewhere(path: str | os.PathLike[str]) -> None:
    """Refuses a link whose target does not exist, because nothing can be created at its path.

    Raises:
        FileNotFoundError: the path is such a link; the message gives the target.
    """
    if not is_url(path) and (link := Path(path)).is_symlink() and not link.exists():
        raise FileNotFoundError(errno.ENOENT, f"it is a link to {link.readlink()}, which does not exist", str(path))
