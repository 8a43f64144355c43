"""Names of files and folders as users give them: ``~`` stands for the home folder, and what is written to is UTF-8."""

import os


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
