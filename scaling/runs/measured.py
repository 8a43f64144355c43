"""What an experiment has measured, by name, in a file of JSON lines: the same command goes on where it ended."""

import json
import time
from collections.abc import Callable
from typing import Any

from etils import epath

from scaling.runs.json_lines import JsonLines, read_lines

_SHOWN = 200  # characters of a line that are printed


class Measured:
    """Lines of a file, each with a name.

    Attributes:
        found: name -> line.
    """

    def __init__(self, path: epath.Path) -> None:
        self._path = path
        self.found: dict[str, dict[str, Any]] = {line["name"]: line for line in read_lines(path)}

    def once(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The line of a name; it is measured, written with its time in seconds and printed, if it is not there."""
        if name not in self.found:
            import jax

            begun = time.perf_counter()
            line = {"name": name} | measure() | {"seconds": round(time.perf_counter() - begun)}
            lines = JsonLines(self._path, lambda record: False)
            lines.write(line)
            lines.close()
            self.found[name] = line
            jax.clear_caches()  # a program of one training serves no other
            print(f"{time.strftime('%H:%M:%S')} {json.dumps(line)[:_SHOWN]}", flush=True)
        return self.found[name]
