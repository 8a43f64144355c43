"""Shows the progress of long work: a bar on a terminal, occasional lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any, Self

import rich.console
import rich.progress

_SECONDS_BETWEEN_LINES = 10.0


class Bar:
    """A context manager around the work, which says at the end how long it took.

    Args:
        title: text before the progress.
        columns: of the bar, after its title and before the time that is left.
        fields: what a bar begins with, as of ``rich.progress.Progress.add_task``.
    """

    def __init__(self, title: str, *columns: rich.progress.ProgressColumn, **fields: Any) -> None:
        self._title = title
        self._started = self._shown = time.monotonic()
        self._bar: rich.progress.Progress | None = None
        if sys.stderr.isatty():
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(),
                *columns,
                rich.progress.TimeRemainingColumn(),
                console=rich.console.Console(stderr=True),
            )
            self._task = self._bar.add_task(title, **({"total": None} | fields))

    def done(self) -> str:
        """What the last line says before the seconds."""
        return ""

    def show(self, line: str, **fields: Any) -> None:
        """Updates the bar by fields of ``rich``; without a terminal, prints the line if the last one is old enough."""
        if self._bar:
            self._bar.update(self._task, **fields)
        elif time.monotonic() - self._shown > _SECONDS_BETWEEN_LINES:
            self._shown = time.monotonic()
            print(f"{self._title}: {line}", file=sys.stderr)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        if error is None:
            print(f"{self._title}: {self.done()}{time.monotonic() - self._started:.1f} s", file=sys.stderr)


class Tokens(Bar):
    """Counts stored bytes read and tokens written.

    Args:
        total_bytes: bytes to read.
        title: text before the progress.
    """

    def __init__(self, total_bytes: int, title: str) -> None:
        self._total = max(1, total_bytes)
        self._read = self._tokens = 0
        tokens = rich.progress.TextColumn("{task.fields[tokens]:,} tokens")
        super().__init__(title, rich.progress.TaskProgressColumn(), tokens, total=self._total, tokens=0)

    def bytes(self, count: int) -> None:
        """Says that ``count`` more bytes were read."""
        self._read += count
        self._update()

    def tokens(self, count: int) -> None:
        """Says that ``count`` more tokens were written."""
        self._tokens += count
        self._update()

    def done(self) -> str:
        return f"{self._tokens:,} tokens in "

    def _update(self) -> None:
        line = f"{self._read / self._total:.0%}, {self._tokens:,} tokens"
        self.show(line, completed=self._read, tokens=self._tokens)


class Steps(Bar):
    """Counts tasks of steps that follow each other.

    Args:
        title: text before the progress.
    """

    def __init__(self, title: str) -> None:
        super().__init__(title, rich.progress.MofNCompleteColumn())

    def progress(self, what: str, done: int, tasks: int) -> None:
        """Says that some of the tasks of a step are done."""
        line = f"{what}, {done:,} of {tasks:,}"
        self.show(line, description=f"{self._title}: {what}", completed=done, total=tasks)
