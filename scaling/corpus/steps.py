"""Steps of a build: many tasks that run at once, each at most once, also over restarts.

A task is done when its result file, made of the same input, and the files that it makes are there. The result is
written last, so what a killed task leaves is written again, and so is what was deleted later. Tasks hold a shared lock,
which ``begin`` waits for, so that a task of a build that was killed cannot write into the next build.
"""

import contextlib
import dataclasses
import fcntl
import functools
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scaling import durable, json_text
from scaling.corpus.engine import Engine

STAMP = "stage.json"  # of the folder of a stage: what it was made of
_MADE_OF = "made of"  # in a result file
_LOCK = ".tasks.lock"  # beside the folders of the stages
_PATIENCE = 60.0  # seconds that tasks of a killed build get to end; workers notice its end in less than one


@dataclasses.dataclass(frozen=True)
class Task:
    """A call of a function in a worker.

    Attributes:
        name: of the result file, without ``.json``; may contain folders.
        call: picklable, without arguments; returns plain values that JSON can hold.
        outputs: files that it makes. Files that only the result tells are named there, from the folder of the stage, in
            the list "files".
        made_of: what the task is made of besides that which the whole stage is made of (``Steps.begin``), as a digest.
            A task that was made of something else is done again.
    """

    name: str
    call: Callable[[], Mapping[str, Any]]
    outputs: tuple[Path, ...] = ()
    made_of: str = ""


Progress = Callable[[str, int, int], None]  # (what, tasks that are done, all of them)


@dataclasses.dataclass(frozen=True)
class Steps:
    """Runs the tasks of one stage.

    Attributes:
        folder: of the stage; the results lie there.
        engine: where tasks run.
        progress: is told how far a step is.
    """

    folder: Path
    engine: Engine
    progress: Progress

    def begin(self, made_of: Mapping[str, Any]) -> None:
        """Deletes what the folder has if it was made of something else: other knobs, other input, another version.

        Also deletes what killed tasks left half written.

        Raises:
            OSError: cannot write.
            ValueError: tasks of an earlier build do not end.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        _wait_for_tasks(self.folder.parent / _LOCK)
        stamp = self.folder / STAMP
        text = json.dumps(made_of, indent=1, sort_keys=True) + "\n"
        if self.folder.exists() and (not stamp.exists() or stamp.read_text() != text):
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        for partial in self.folder.rglob("*.partial"):
            partial.unlink()
        if not stamp.exists():
            durable.replace_text(stamp, text)

    def run(self, what: str, tasks: Sequence[Task]) -> list[dict[str, Any]]:
        """The results of all tasks, in their order. Those that are done do not run again.

        Args:
            what: the step's name, for the progress.
            tasks: with names of their own.

        Raises:
            ValueError, OSError: what a task raises.
            KeyboardInterrupt: ctrl-C.
        """
        assert len({task.name for task in tasks}) == len(tasks), "tasks share a result file"
        left = [task for task in tasks if self._result(task) is None]
        self.progress(what, len(tasks) - len(left), len(tasks))
        done = len(tasks) - len(left)
        for folder in {self._path(task).parent for task in left}:
            folder.mkdir(parents=True, exist_ok=True)
        for _ in self.engine.each(functools.partial(_do, self.folder), left):
            done += 1
            self.progress(what, done, len(tasks))
        results = [self._result(task) for task in tasks]
        assert None not in results, "a task did not make what it says"
        return [result for result in results if result is not None]

    def result(self, name: str) -> dict[str, Any]:
        """The result of a task that is done, by its name."""
        path = self.folder / f"{name}.json"
        found: dict[str, Any] = json_text.parse(path.read_bytes(), str(path))
        del found[_MADE_OF]
        return found

    def _path(self, task: Task) -> Path:
        return self.folder / f"{task.name}.json"

    def _result(self, task: Task) -> dict[str, Any] | None:
        """The result of a task that is done; None if it is not, or if something of it is lost or damaged."""
        try:
            result: dict[str, Any] = json_text.parse(self._path(task).read_bytes(), str(self._path(task)))
        except (FileNotFoundError, ValueError):
            return None
        if result.pop(_MADE_OF, None) != task.made_of:
            return None
        files = [*task.outputs, *(self.folder / name for name in result.get("files", ()))]
        return result if all(file.exists() for file in files) else None


def _do(folder: Path, task: Task) -> None:
    with (folder.parent / _LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        result = {**task.call(), _MADE_OF: task.made_of}
        durable.replace_text(folder / f"{task.name}.json", json.dumps(result, sort_keys=True) + "\n", synced=True)


def _wait_for_tasks(path: Path) -> None:
    """Waits until no task holds the lock."""
    end = time.monotonic() + _PATIENCE
    with path.open("a") as lock:
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            if time.monotonic() > end:
                raise ValueError(f"tasks of an earlier build still write into {path.parent}; stop their processes")
            time.sleep(0.1)
