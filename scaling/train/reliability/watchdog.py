"""Ends a process that hangs, with the stacks of its threads on stderr and in ``stacks-<process>.txt``."""

import contextlib
import faulthandler
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

from etils import epath

from scaling import exit_codes

_LONGER = 10  # times as long for whatever is not a step
_POLL_SECONDS = 1.0
_WRITE_SECONDS = 10.0  # for the file: the disk may be what hangs


class Watchdog:
    """A thread that ends the process with ``HUNG`` if a step, or a phase between steps, takes too long.

    It begins with a phase: the first step, which compiles. Use it as a context. Time in which the whole process stood
    still (stopped, its machine asleep) does not count.
    """

    def __init__(self, seconds: float, run_dir: epath.Path, process: int):
        """Args: limit of a step, ten times that of a phase, 0 = none; where the file goes; number of the process."""
        self._seconds, self._file = seconds, run_dir / f"stacks-{process}.txt"
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._lock = threading.Lock()
        self._phases: list[str] = []
        self._idle = 0.0
        self.begin()

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        if self._seconds:
            self._thread.join()

    def begin(self) -> None:
        """The next step is a first one: it compiles."""
        with self._lock:
            self._name, self._limit, self._idle = "the first step, with its compilation,", _LONGER * self._seconds, 0.0

    def step(self) -> None:
        """A step has ended."""
        with self._lock:
            self._name, self._limit, self._idle = "a step", self._seconds, 0.0

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What happens inside is no step, and may take longer."""
        with self._lock:
            before = self._name, self._limit
            self._name, self._limit, self._idle = name, _LONGER * self._seconds, 0.0
        try:
            yield
        finally:
            with self._lock:
                (self._name, self._limit), self._idle = before, 0.0

    def _watch(self) -> None:
        poll = min(_POLL_SECONDS, self._seconds / 10)
        last = time.monotonic()
        while not self._stopped.wait(poll):
            now = time.monotonic()
            with self._lock:
                self._idle += min(now - last, 2 * poll)  # more has passed only where this thread stood still, too
                name, limit, hung = self._name, self._limit, self._idle > self._limit
            last = now
            if hung:
                self._end(f"{name} has taken more than {limit:g} s (config.guard.hang_seconds={self._seconds:g})")

    def _end(self, reason: str) -> None:
        with contextlib.suppress(Exception):
            print(f"scaling train: error: {reason}; stacks of all threads follow", file=sys.stderr, flush=True)
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
        writer = threading.Thread(target=self._write, args=(reason,), daemon=True)
        writer.start()
        writer.join(_WRITE_SECONDS)
        os._exit(exit_codes.HUNG)

    def _write(self, reason: str) -> None:
        with tempfile.TemporaryFile() as file:  # a descriptor is needed, which object stores have not
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            self._file.write_text(f"{reason}\n{file.read().decode()}")
