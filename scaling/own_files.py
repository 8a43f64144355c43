"""What this program itself writes beside the runs in a folder of runs; a shell's ``runs/demo/*`` names it, too."""

from collections.abc import Sequence
from pathlib import Path

_FILES = ("launch.json", "launch.log")  # of a launcher
_REPORT = ("points.csv", "figures")  # what makes a folder a report of `scaling report`, whatever its name


def is_own(path: str | Path) -> bool:
    """Whether a path is no run but a launcher's file or a report; False where nothing is there."""
    path = Path(path)
    if path.is_dir():
        return not (path / "config.json").exists() and all((path / name).exists() for name in _REPORT)
    return path.name in _FILES and path.is_file()


def without_own(paths: Sequence[str]) -> list[str]:
    """The paths but those of ``is_own``.

    Raises:
        ValueError: nothing is left.
    """
    left = [path for path in paths if not is_own(path)]
    if paths and not left:
        raise ValueError(f"{', '.join(paths)}: no run is named, only what a launcher or `scaling report` wrote")
    return left
