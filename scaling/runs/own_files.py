"""Recognises reports and files that the program writes beside runs, and that ``runs/demo/*`` matches in a shell."""

from collections.abc import Sequence
from typing import Any

from etils import epath

from scaling.runs.paths import is_run

_TABLES = (".csv", ".jsonl")  # files that a user may mean


def is_own(path: Any) -> bool:
    """Whether a path (a text, ``Path`` or ``epath.Path``) is a report, a part of one, or a file that is no table.

    False if the path does not exist, so that a mistyped path is refused.
    """
    path = epath.Path(path) if isinstance(path, str) else path
    if path.name in ("points.csv", "figures") and (path.parent / "report.html").exists():
        return True
    if path.is_dir():
        return not is_run(path) and (
            (path / "report.html").exists() or all((path / n).exists() for n in ("points.csv", "figures"))
        )
    return path.exists() and path.suffix not in _TABLES


def without_own(paths: Sequence[str]) -> list[str]:
    """The paths without those of ``is_own``.

    Raises:
        ValueError: nothing is left.
    """
    left = [path for path in paths if not is_own(path)]
    if paths and not left:
        raise ValueError(f"{', '.join(paths)}: no run is named, only what a launcher or `scaling report` wrote")
    return left
