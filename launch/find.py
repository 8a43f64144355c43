"""Finds launches by folder or name, and their runs."""

import dataclasses
import fnmatch
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath

from launch import state
from scaling.object_store import is_remote
from scaling.runs.own_files import without_own
from scaling.runs.paths import is_run

ROOT = Path("runs")


@dataclasses.dataclass(frozen=True)
class Found:
    """A folder with runs.

    Attributes:
        folder: of the launch.
        known: the content of its ``launch.json``; empty if there is none.
        runs: name -> run directory, which may be in an object store.
    """

    folder: Path | epath.Path
    known: dict[str, Any]
    runs: dict[str, epath.Path]

    @property
    def target(self) -> str:
        """``local`` where nothing else is said."""
        return self.known.get("target", "local")


def find(given: Sequence[str]) -> list[Found]:
    """The launches that folders or names (of ``runs/``) mean; without any, all of ``runs/``.

    What a launcher or a report wrote beside runs, as ``runs/demo/*`` names it, is passed over.

    Raises:
        FileNotFoundError: no such folder, or no runs in it.
        ValueError: nothing but such files was named.
    """
    if not given:
        inside = sorted(path for path in ROOT.iterdir() if path.is_dir()) if ROOT.is_dir() else []
        return [found for path in inside if (found := _read_or_say(path))]
    launches = []
    for name in without_own([name for name in given if not _is_archive(Path(name))]):
        places = (epath.Path(name),) if is_remote(name) else (Path(name), ROOT / name)
        path = next((path for path in places if path.is_dir()), None)
        if path is None and is_remote(name):
            raise FileNotFoundError(f"{name} is not a folder of the store")
        if path is None:
            raise FileNotFoundError(f"neither {name} nor {ROOT / name} is a folder")
        found = _read(path)
        if found is None:
            raise FileNotFoundError(f"{path} contains no run and no launch")
        launches.append(found)
    return launches


def _read_or_say(folder: Path) -> Found | None:
    """Reads a launch; a damaged one is named on stderr, so that it does not hide the others."""
    try:
        return _read(folder)
    except ValueError as error:
        print(f"skipped: {error}", file=sys.stderr)
        return None


def _read(folder: Path | epath.Path) -> Found | None:
    known = state.read(folder)
    if "jobs" in known:
        return Found(folder, known, {name: epath.Path(job["workdir"]) for name, job in known["jobs"].items()})
    if is_run(folder):
        return Found(folder, known, {folder.name: epath.Path(folder)})
    runs = {path.name: epath.Path(path) for path in sorted(folder.iterdir()) if path.is_dir() and is_run(path)}
    waiting = {name: epath.Path(folder / name) for name in known.get("runs", []) if name not in runs}
    return Found(folder, known, runs | waiting) if runs or waiting else None


def _is_archive(path: Path) -> bool:
    """Whether a file is an archive of code and plans for other machines (``launch.bundle``)."""
    return path.is_file() and fnmatch.fnmatch(path.name, "scaling-*.tar.gz")
