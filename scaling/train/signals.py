"""Being told to stop: a signal lets the step finish, save, and leave with an exit code of its own.

SIGTERM and SIGINT are orders, and the second of them ends the process. The others are warnings, which schedulers
and kernels send early and repeat: SIGHUP (the terminal is gone), SIGUSR1 and SIGUSR2 (Slurm's ``--signal``), SIGXCPU
(once a second near the limit of CPU time). After the first one they have no effect.
"""

import contextlib
import signal
from collections.abc import Iterator

from scaling import exit_codes

ORDERS = (signal.SIGTERM, signal.SIGINT)
_WARNINGS = tuple(number for number in exit_codes.OF_SIGNAL if number not in ORDERS)


def stops() -> tuple[signal.Signals, ...]:
    """The signals that ask this process to stop: a warning that it ignores (``nohup``) is none."""
    return ORDERS + tuple(number for number in _WARNINGS if signal.getsignal(number) is not signal.SIG_IGN)


class StopRequest:
    """Whether, and by which signal, this run was asked to stop."""

    def __init__(self) -> None:
        self.exit_code = 0

    def agreed(self) -> int:
        """Exit code once any process has been signalled, else 0; every process gets the same answer.

        A collective where there are several processes: call it at the same step everywhere.
        """
        # Here, so that a sweep and a supervisor know the signals without JAX.
        import jax
        import numpy as np
        from jax.experimental import multihost_utils

        if jax.process_count() == 1:
            return self.exit_code
        return int(multihost_utils.process_allgather(np.asarray([self.exit_code])).max())


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Catches the signals of ``stops`` inside the block; a second order interrupts at once."""
    request = StopRequest()

    def note(number: int, frame: object) -> None:
        request.exit_code = request.exit_code or exit_codes.OF_SIGNAL[signal.Signals(number)]
        if number in ORDERS:
            for caught in ORDERS:
                signal.signal(caught, old[caught])

    old = {caught: signal.signal(caught, note) for caught in stops()}
    try:
        yield request
    finally:
        for caught, handler in old.items():
            signal.signal(caught, handler)
