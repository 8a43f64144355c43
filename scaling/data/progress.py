"""Shows the progress of tokenizing: a bar on a terminal, occasional lines elsewhere."""

import sys
import time
from types import TracebackType

import rich.console
import rich.progress

_SECONDS_BETWEEN_LINES = 10.0


class Tokens:
    """Counts stored bytes read and tokens written; a context manager.

    Args:
        total_bytes: bytes to read.
        title: text before the progress.
    """

    def __init__(self, total_bytes: int, title: str) -> None:
        self._total = max(1, total_bytes)
        self._title = title
        self._read = self._tokens = 0
        self._started = self._shown = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(),
                rich.progress.TaskProgressColumn(),
                rich.progress.TextColumn("{task.fields[tokens]:,} tokens"),
                rich.progress.TimeRemainingColumn(),
                console=rich.console.Console(stderr=True),
            )
            self._task = self._bar.add_task(title, total=self._total, tokens=0)

    def bytes(self, count: int) -> None:
        """Says that ``count`` more bytes were read."""
        self._read += count
        if self._bar:
            self._bar.update(self._task, completed=self._read)
        elif time.monotonic() - self._shown > _SECONDS_BETWEEN_LINES:
            self._shown = time.monotonic()
            print(f"{self._title}: {self._read / self._total:.0%}, {self._tokens:,} tokens", file=sys.stderr)

    def tokens(self, count: int) -> None:
        """Says that ``count`` more tokens were written."""
        self._tokens += count
        if self._bar:
            self._bar.update(self._task, tokens=self._tokens)

    def __enter__(self) -> "Tokens":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        if error is None:
            seconds = time.monotonic() - self._started
            print(f"{self._title}: {self._tokens:,} tokens in {seconds:.1f} s", file=sys.stderr)
