"""Timing on a shared machine: measures how much of its CPU time other processes used meanwhile.

This matters for work on the CPU. An accelerator belongs to one process, which mostly waits for it, so all steps count.
"""

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path

QUIET = 0.05  # of the machine, that others may take of a step that counts


@dataclasses.dataclass
class Timing:
    """One timed piece of work.

    Attributes:
        seconds: wall time.
        cpu: CPU seconds of this process.
        others: part of the machine's CPU time that other processes took; 0 where that is not known.
        shared: whether others take from this work, which is so on CPUs; else ``others`` stays 0.
    """

    seconds: float = 0.0
    cpu: float = 0.0
    others: float = 0.0
    shared: bool = True

    def __enter__(self) -> "Timing":
        self._busy, self._cpu, self._wall = busy(), time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._wall
        self.cpu = time.process_time() - self._cpu
        taken = busy() - self._busy - self.cpu
        self.others = max(0.0, taken) / (self.seconds * (os.cpu_count() or 1)) if self.shared else 0.0


def repeated(call: Callable[[], object], count: int, calls: int = 1) -> list[Timing]:
    """So many timings, of so many calls each."""
    found = []
    for _ in range(count):
        with Timing() as timing:
            for _ in range(calls):
                call()
        found.append(timing)
    return found


def busy() -> float:
    """CPU seconds that all processes of the machine have used since it started; 0 where the kernel does not say."""
    path = Path("/proc/stat")
    if not path.exists():
        return 0.0
    numbers = [int(word) for word in path.read_text().splitlines()[0].split()[1:9]]
    return (sum(numbers) - numbers[3] - numbers[4]) / os.sysconf("SC_CLK_TCK")


def quiet(timings: list[Timing]) -> list[Timing]:
    """The timings during which other processes used little; all timings if there are none."""
    return [timing for timing in timings if timing.others < QUIET] or timings
