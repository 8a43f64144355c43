"""Training to the end in spite of bad steps: from an earlier state again, past the data that led to them."""

from scaling.train.loop import Loop
from scaling.train.reliability.bad_steps import Diverged, RollBack
from scaling.train.reliability.restore import roll_back
from scaling.train.signals import StopRequest
from scaling.train.state import TrainState


def train(loop: Loop, state: TrainState, stop: StopRequest) -> tuple[TrainState, int]:
    """``loop.train``, which begins anew after each roll-back.

    Raises:
        Diverged: rolling back did not help, or cannot be done.
        Faulty, OSError: as ``loop.train``.
    """
    while True:
        try:
            return loop.train(state, stop)
        except RollBack as error:
            bad = error.without_frames()
        del state  # the memory is needed for the earlier one
        try:
            with loop.watch.watchdog.phase("going back"):
                state, first_step = roll_back(loop.watch, bad)
        except Diverged:
            loop.log.step(bad.line)  # readers of the run see why it ended; resuming from before drops the line
            raise
        loop.begin(first_step)
