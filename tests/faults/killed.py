"""``scaling`` in a process that kills itself just before its n-th file operation of a kind, or call of a function.

    python -m tests.faults.killed 'os.rename:orbax-checkpoint-tmp$:2' train --config=...
    python -m tests.faults.killed 'call:scaling.generate.decode.proceed:5' align ppo --config=...

The operations are Python's audit events (``open`` only for writing). The event ``call`` takes a function's module and
name; ``call made`` counts the calls of all functions that this function makes. The product knows nothing of it.
"""

import functools
import importlib
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import Any


def operation(event: str, arguments: tuple[object, ...]) -> str | None:
    """The path of an operation that changes a file or folder; None for anything else."""
    if event == "open":
        mode = arguments[1]
        return str(arguments[0]) if isinstance(mode, str) and set(mode) & set("wax+") else None
    if event in ("os.rename", "os.mkdir", "os.rmdir", "shutil.rmtree"):
        return str(arguments[0])
    if event == "os.remove":  # relative to an open folder: inside of a deletion of the whole folder
        return ("inside/" if arguments[1] != -1 else "") + str(arguments[0])
    return None


def kill_at(point: str) -> None:
    """Kills this process before ``event:regular expression of the path, or a function:n``."""
    event, pattern, count = point.split(":")
    seen = 0

    def happened() -> None:
        nonlocal seen
        seen += 1
        if seen == int(count):
            os.kill(os.getpid(), signal.SIGKILL)

    if event.startswith("call"):
        _watch_calls(pattern, event == "call made", happened)
        return

    def look(found: str, arguments: tuple[object, ...]) -> None:
        if found == event and (path := operation(found, arguments)) is not None and re.search(pattern, path):
            happened()

    sys.addaudithook(look)


def _watch_calls(name: str, made: bool, happened: Callable[[], None]) -> None:
    """Has ``happened`` called before each call of a function, or of the functions that it returns."""
    module_name, _, function_name = name.rpartition(".")
    module = importlib.import_module(module_name)
    function = getattr(module, function_name)

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            happened()
            return function(*arguments, **named)

        return call

    def makes(*arguments: Any, **named: Any) -> Any:
        return watched(function(*arguments, **named))

    setattr(module, function_name, makes if made else watched(function))


if __name__ == "__main__":
    kill_at(sys.argv[1])
    from scaling import cli

    sys.exit(cli.main(sys.argv[2:]))
