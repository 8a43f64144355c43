"""A progress bar for evaluations."""

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows on a terminal how much of ``total`` is done; elsewhere it shows nothing.

    Yields:
        A function to be told how much is done so far.
    """
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(title, total=total)

        def show(done: int) -> None:
            shown.update(task, completed=done)

        yield show
