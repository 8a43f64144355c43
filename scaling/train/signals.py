"""Being told to stop: SIGTERM and SIGINT let the step finish, save, and leave with their own exit code."""

import contextlib
import signal
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from scaling import exit_codes

_CODES = {signal.SIGTERM: exit_codes.SIGTERM, signal.SIGINT: exit_codes.SIGINT}


class StopRequest:
    """Whether, and by which signal, this run was asked to stop."""

    def __init__(self) -> None:
        self.exit_code = 0

    def agreed(self) -> int:
        """Exit code once any process has been signalled, else 0; every process gets the same answer.

        A collective where there are several processes: call it at the same step everywhere.
        """
        if jax.process_count() == 1:
            return self.exit_code
        return int(multihost_utils.process_allgather(np.asarray([self.exit_code])).max())


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Catches the first SIGTERM or SIGINT inside the block; a second one interrupts at once."""
    request = StopRequest()

    def note(number: int, frame: object) -> None:
        request.exit_code = _CODES[signal.Signals(number)]
        for caught in _CODES:
            signal.signal(caught, old[caught])

    old = {caught: signal.signal(caught, note) for caught in _CODES}
    try:
        yield request
    finally:
        for caught, handler in old.items():
            signal.signal(caught, handler)
