"""The experiments that ship with the package, by name: ``gpt3/125m`` is ``experiments/gpt3/125m.py`` of a checkout.

A wheel contains a copy of that folder inside the package, so that these names, and the paths that the documentation
shows, work from any folder.
"""

import ast
import difflib
import re
from pathlib import Path, PurePath

_PACKAGE = Path(__file__).resolve().parents[1]
_IS_EXPERIMENT = re.compile(r"^def get_(config|sweep|corpus)\(", re.MULTILINE)
_LIKE = 1.2  # of 2: a name that is less similar to another is not taken for a misspelling of it


def folder() -> Path:
    """The folder of the experiments: inside an installed package, or beside the package in a checkout."""
    inside = _PACKAGE / "experiments"
    return inside if inside.is_dir() else _PACKAGE.parent / "experiments"


def experiments() -> dict[str, Path]:
    """Maps names such as ``gpt3/125m`` to the files that have ``get_config``, ``get_sweep`` or ``get_corpus``."""
    root = folder()
    files = [path for path in sorted(root.glob("*/*.py")) if _IS_EXPERIMENT.search(path.read_text(encoding="utf-8"))]
    return {path.relative_to(root).as_posix().removesuffix(".py"): path for path in files}


def located(path: str) -> str:
    """The file that a path or a name means.

    Args:
        path: a file; or, if there is no such file, the name of an experiment that ships: ``gpt3/125m``, with or without
            ``experiments/`` before it and ``.py`` after it.

    Raises:
        FileNotFoundError: it is neither; the message suggests the nearest name.
    """
    if Path(path).is_file():
        return path
    known = experiments()
    name = PurePath(path).as_posix().removeprefix("experiments/").removesuffix(".py")
    if name in known:
        return str(known[name])

    def likeness(other: str) -> float:
        pairs = ((name, other), (PurePath(name).name, PurePath(other).name))
        return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    nearest = max(known, key=likeness, default="")
    hint = "`scaling config --list` names those that ship"
    if nearest and likeness(nearest) >= _LIKE:
        hint = f"did you mean {nearest}?"
    raise FileNotFoundError(f"experiment {path} does not exist; {hint}")


def to_text() -> str:
    """A line for each experiment with its name and the first line of its docstring; then the folder of the files."""
    known = experiments()
    width = max(map(len, known), default=0)
    lines = [f"{name:<{width}}  {_summary(path)}" for name, path in known.items()]
    return "\n".join([*lines, "", f"files: {folder()}"])


def _summary(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
