"""Writes where the time of this attempt goes; ``scaling.runs.attempts`` says what is in the file and reads it."""

import contextlib
import json
import logging
import os
import socket
import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from etils import epath

from scaling import background, durable, exit_codes
from scaling.object_store import is_remote
from scaling.runs import attempts

log = logging.getLogger(__name__)

_ALIVE_SECONDS = 60.0  # the file is rewritten so often, where steps take less; in object stores not more often
_RECENT = 100  # medians are of this many logged lines and saves


class Goodput:
    """A clock that is always running for one kind of ``attempts.KINDS``, and the attempt's file.

    Use it as a context: its end, however it comes (but by a signal that kills), goes into the file.

    Attributes:
        exit_code: what the process will end with if no exception comes.
    """

    def __init__(self, run_dir: epath.Path | None = None, started: float | None = None):
        """Args: the run directory, None in all processes but the first; Unix time at which the process began."""
        self._run_dir = run_dir
        self._clock, self._kind = time.monotonic(), "startup"
        self._seconds = dict.fromkeys(attempts.KINDS, 0.0)
        self._started = time.time() if started is None else started
        self._seconds["startup"] = max(0.0, time.time() - self._started)
        self._stalls: deque[float] = deque(maxlen=_RECENT)
        self._step_seconds: deque[float] = deque(maxlen=_RECENT)
        self._number = self._first_step = self._step = 0
        self._thrown: set[int] = set()  # steps of this attempt that were computed for nothing
        self._mark = (0, 0.0)  # step and seconds in steps at the last logged line
        self._earlier: list[attempts.Attempt] = []
        self._written = -float("inf")
        self.exit_code = exit_codes.OK

    def __enter__(self) -> "Goodput":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What could not be written is said already, and this cannot be written either.
        self.end(self.exit_code if error is None else exit_codes.of(error), aloud=not isinstance(error, OSError))

    @contextlib.contextmanager
    def during(self, kind: str) -> Iterator[None]:
        """What happens inside is of this kind; may be nested."""
        assert kind in self._seconds, kind
        before = self._enter(kind)
        try:
            yield
        finally:
            self._enter(before)

    @contextlib.contextmanager
    def save_stall(self) -> Iterator[None]:
        """A periodic save: what the loop waits for it is remembered apart."""
        start = time.monotonic()
        with self.during("save"):
            yield
        self._stalls.append(time.monotonic() - start)

    def begin(self, first_step: int) -> None:
        """The first step is known: from here on the attempt has a file."""
        self._first_step = self._step = first_step
        self._thrown.clear()
        self._mark = (first_step, 0.0)
        if self._run_dir is not None:
            self._earlier = attempts.read(self._run_dir)
            names = (self._run_dir / attempts.FOLDER).glob("*.json")
            self._number = 1 + max((int(path.stem) for path in names if path.stem.isdigit()), default=0)
            (self._run_dir / attempts.FOLDER).mkdir(exist_ok=True)
            self._write()

    def stepped(self, step: int) -> None:
        """So many steps are done: a sign of life in the file where lines are logged seldom."""
        self._step = step
        if self._run_dir is not None and time.monotonic() - self._written > _ALIVE_SECONDS:
            self._enter(self._kind)
            self._write()

    def logged(self, step: int) -> attempts.Summary:
        """A line is logged after ``step`` steps: writes the file and returns the sums of the run so far."""
        self._enter(self._kind)
        steps, seconds = self._mark
        if step > steps > self._first_step:  # not the first window, which waits for what compiling held up
            self._step_seconds.append((self._seconds[attempts.STEPS] - seconds) / (step - steps))
        self._mark = step, self._seconds[attempts.STEPS]
        self._step = step
        if self._run_dir is not None and not is_remote(self._run_dir):
            self._write()
        summary = attempts.summarize([*self._earlier, self._attempt()])
        assert summary is not None
        return summary

    def discard(self, step: int) -> None:
        """A step is thrown away (a bad loss): its share of the time counts as skipped."""
        self._skip([step])

    def rolled_back(self, step: int) -> None:
        """All steps after ``step`` are thrown away; it may lie before this attempt's first one."""
        since = range(max(step, self._first_step) + 1, self._step + 1)
        self._skip([done for done in since if done not in self._thrown])
        self._step, self._first_step = step, min(step, self._first_step)
        self._thrown = {done for done in self._thrown if done <= step}
        self._mark = step, self._seconds[attempts.STEPS]

    def _skip(self, steps: Sequence[int]) -> None:
        self._enter(self._kind)
        counted = self._step - self._first_step - len(self._thrown)
        moved = self._seconds[attempts.STEPS] * len(steps) / max(counted, 1)
        self._seconds[attempts.STEPS] -= moved
        self._seconds["skipped"] += moved
        self._thrown.update(steps)
        self._mark = self._mark[0], self._seconds[attempts.STEPS]

    def end(self, exit_code: int, aloud: bool = True) -> None:
        """The last entry, with an exit code; on a full disk the attempt stays as it was, as if killed.

        Args:
            exit_code: of ``scaling.exit_codes``.
            aloud: warn if it cannot be written.
        """
        self._enter(self._kind)
        if self._number:
            try:
                self._write(ended=time.time(), exit_code=exit_code)
                background.settle()
            except OSError as error:
                log.log(
                    logging.WARNING if aloud else logging.DEBUG,
                    "the end of attempt %d could not be noted (%s)",
                    self._number,
                    error,
                )

    def _enter(self, kind: str) -> str:
        """Starts to count another kind, and returns the one before."""
        now = time.monotonic()
        self._seconds[self._kind] += now - self._clock
        self._clock, before, self._kind = now, self._kind, kind
        return before

    def _attempt(self, **end: Any) -> attempts.Attempt:
        median = statistics.median(self._step_seconds) if self._step_seconds else None
        return attempts.Attempt(
            number=self._number,
            hostname=socket.gethostname(),
            pid=os.getpid(),
            started=self._started,
            first_step=self._first_step,
            step=self._step,
            seconds=dict(self._seconds),
            save_stalls=tuple(self._stalls),
            step_seconds=median,
            **end,
        )

    def _write(self, **end: Any) -> None:
        assert self._run_dir is not None
        path = attempts.path(self._run_dir, self._number)
        durable.replace_text_later(path, json.dumps(vars(self._attempt(**end)), indent=1))
        self._written = time.monotonic()
