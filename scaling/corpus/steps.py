"""Steps of a build: many tasks that run at once, each at most once, also over restarts.

A task is done when its result file is there; it is written last, so what a killed task leaves is written again.
"""

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scaling import durable, json_text
from scaling.corpus.engine import Engine

STAMP = "stage.json"  # of the folder of a stage: what it was made of


@dataclasses.dataclass(frozen=True)
class Task:
    """A call of a function in a worker.

    Attributes:
        name: of the result file, without ``.json``; may contain folders.
        call: picklable, without arguments; returns plain values that JSON can hold.
    """

    name: str
    call: Callable[[], Mapping[str, Any]]


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
        """
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
            ValueError, OSError: what a task raises; a damaged result file.
        """
        assert len({task.name for task in tasks}) == len(tasks), "tasks share a result file"
        left = [task for task in tasks if not self._result(task).exists()]
        self.progress(what, len(tasks) - len(left), len(tasks))
        done = len(tasks) - len(left)
        for folder in {self._result(task).parent for task in left}:
            folder.mkdir(parents=True, exist_ok=True)
        for _ in self.engine.each(functools.partial(_do, self.folder), left):
            done += 1
            self.progress(what, done, len(tasks))
        return [json_text.parse(self._result(task).read_bytes(), str(self._result(task))) for task in tasks]

    def _result(self, task: Task) -> Path:
        return self.folder / f"{task.name}.json"


def _do(folder: Path, task: Task) -> None:
    result = dict(task.call())
    durable.replace_text(folder / f"{task.name}.json", json.dumps(result, sort_keys=True) + "\n", synced=True)
