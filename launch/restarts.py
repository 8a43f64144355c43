"""Decides after the end of a run whether and when it is started again; the same for all targets."""

import dataclasses
import signal
from collections.abc import Sequence

from scaling import exit_codes

DONE, RESTART, FAIL = "done", "restart", "fail"
# A run that ended with one of these would end in the same way again.
_FINAL = (exit_codes.USAGE, exit_codes.DIVERGED)
_BUGS = 2  # starts after an exception without progress in between: few exceptions do not happen again


@dataclasses.dataclass
class Restarts:
    """Counts starts without progress, and decides.

    Attributes:
        most: limit of starts in a row without progress.
        first_delay: seconds before the first of these; each further one waits twice as long.
        longest_delay: limit of the delay, seconds.
        step: the highest step or checkpoint seen.
        in_vain: starts since ``step`` last rose.
        total: starts after the first.
        preemptions: how many of these followed a signal or the loss of a machine.
    """

    most: int = 5
    first_delay: float = 1.0
    longest_delay: float = 300.0
    step: int = -1
    in_vain: int = 0
    total: int = 0
    preemptions: int = 0
    _slow: bool = False  # the last end was a failure of input or output

    def saw(self, step: int) -> None:
        """Notes a step. A step higher than all before is progress."""
        if step > self.step:
            self.step, self.in_vain = step, 0

    def after(self, code: int) -> str:
        """What follows an exit code: DONE, RESTART or FAIL; RESTART counts as one more start."""
        if code == exit_codes.OK:
            return DONE
        if code in _FINAL or self.in_vain >= (min(self.most, _BUGS) if code == exit_codes.BUG else self.most):
            return FAIL
        self.in_vain += 1
        self.total += 1
        self._slow = code == exit_codes.IO
        self.preemptions += code in exit_codes.STOPPED
        return RESTART

    @property
    def delay(self) -> float:
        """Seconds to wait before the next start: ``first_delay`` after progress, then twice as long each time.

        After a failure of a disk or file server they are 30 times as long, because it takes minutes to recover.
        """
        first = self.first_delay * (30.0 if self._slow else 1.0)
        return min(self.longest_delay, first * 2.0 ** min(max(self.in_vain - 1, 0), 60))


def of_group(codes: Sequence[int]) -> int:
    """The exit code that explains why a run of several processes ended.

    Args:
        codes: exit codes in the order in which processes ended, without processes that the supervisor killed.
    """
    for code in codes:
        if code in _FINAL:
            return code
    return next((code for code in codes if code != exit_codes.OK), exit_codes.OK)


def describe(code: int) -> str:
    """An exit code in words."""
    names = {
        exit_codes.BUG: "an exception",
        exit_codes.USAGE: "a mistake in the config",
        exit_codes.DIVERGED: "the loss diverged",
        exit_codes.IO: "input or output failed",
        exit_codes.SIGINT: "interrupted",
        exit_codes.SIGTERM: "terminated",
        exit_codes.HUNG: "a step hung",
        exit_codes.FAULTY: "a recomputed step differed",
    }
    names |= {code: f"stopped by {number.name}" for number, code in exit_codes.OF_SIGNAL.items() if code not in names}
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}" + (f", {names[code]}" if code in names else "")
