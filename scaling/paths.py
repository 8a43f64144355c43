"""Names of files and folders as users give them: ``~`` stands for the home folder, and what is written to is UTF-8."""

import errno
import os
from pathlib import Path


def expanded(path: str) -> str:
    """A path, a URL, a glob or a name, with a ``~`` or ``~user`` at its beginning expanded.

    A shell does this only where the word begins with it: not in ``--output=~/x``, and not in quotes.
    """
    return os.path.expanduser(path)  # noqa: PTH111 - pathlib raises where there is no home, and would mend the slashes


def each_expanded(names: str) -> str:
    """The same of each name of a list with commas."""
    return ",".join(map(expanded, names.split(",")))


def must_be_utf8(name: str, path: str) -> None:
    """Refuses a path that cannot be written to: TensorStore, Arrow and others take UTF-8 names only.

    Args:
        name: of the option or knob, for the message.
        path: as Python has it, bytes that are not UTF-8 as lone surrogates.

    Raises:
        ValueError: it is not.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{name}={path!r}: the name is not UTF-8, and must be; rename the folder, or use another"
        ) from None


def must_take_checkpoints(name: str, path: str) -> None:
    """Refuses the name of a run directory that Orbax seems to save to and cannot read again.

    It looks for what it wrote by a glob of the path as it is, and TensorStore takes a backslash for a slash.

    Args:
        name: of the option or knob, for the message.
        path: of the run directory.

    Raises:
        ValueError: it has one of ``*``, ``?``, ``[`` and a backslash.
    """
    if found := [character for character in "*?[\\" if character in path]:
        raise ValueError(
            f"{name}={path}: no checkpoint can be saved to a folder with {' or '.join(found)} in its name; use another"
        )


def must_lead_somewhere(path: str | os.PathLike[str]) -> None:
    """Refuses a link to what does not exist, at whose place nothing can be made.

    Raises:
        FileNotFoundError: it is one; says where it leads.
    """
    if "://" not in str(path) and (link := Path(path)).is_symlink() and not link.exists():
        raise FileNotFoundError(errno.ENOENT, f"it is a link to {link.readlink()}, which does not exist", str(path))
