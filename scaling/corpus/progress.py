"""Shows how far a stage is: a bar on a terminal, occasional lines elsewhere."""

import sys
import time
from types import TracebackType

import rich.console
import rich.progress

_SECONDS_BETWEEN_LINES = 10.0


class Bar:
    """A context manager around a stage.

    Args:
        title: name of the stage.
    """

    def __init__(self, title: str) -> None:
        self._title, self._step = title, ""
        self._started = self._shown = time.monotonic()
        self._bar: rich.progress.Progress | None = None
        if sys.stderr.isatty():
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TimeRemainingColumn(),
                console=rich.console.Console(stderr=True),
            )
            self._task = self._bar.add_task(title, total=None)

    def progress(self, what: str, done: int, tasks: int) -> None:
        """Says that some of the tasks of a step are done."""
        if self._bar:
            if what != self._step:
                self._bar.reset(self._task)
            self._bar.update(self._task, description=f"{self._title}: {what}", completed=done, total=tasks)
        elif time.monotonic() - self._shown > _SECONDS_BETWEEN_LINES:
            self._shown = time.monotonic()
            print(f"{self._title}: {what}, {done:,} of {tasks:,}", file=sys.stderr)
        self._step = what

    def __enter__(self) -> "Bar":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        if error is None:
            print(f"{self._title}: {time.monotonic() - self._started:.1f} s", file=sys.stderr)
