"""What looks after a run while it steps: the loop tells it of each step, and of what comes between."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from scaling.config import schema as cfg
from scaling.runs.checkpoint import Checkpoints
from scaling.train.reliability import guard
from scaling.train.reliability.bad_steps import BadSteps
from scaling.train.reliability.goodput import Goodput
from scaling.train.reliability.rollbacks import Rollbacks
from scaling.train.reliability.watchdog import Watchdog
from scaling.train.run import Run
from scaling.train.state import TrainState


@dataclasses.dataclass
class Watch:
    """A run's clock, its watchdog, its bad steps and its saves.

    Attributes:
        run: the run.
        goodput: where its time goes.
        watchdog: ends it where it hangs.
        checkpoints: of the run.
        rollbacks: of the run.
        in_a_row: bad steps, as of the last step that was looked at.
    """

    run: Run
    goodput: Goodput
    watchdog: Watchdog
    checkpoints: Checkpoints
    rollbacks: Rollbacks
    in_a_row: int = 0

    def __post_init__(self) -> None:
        self._bad_steps = BadSteps(self.run, self.rollbacks)

    def begin(self, first_step: int) -> None:
        """The run goes on after so many steps, with a step that is compiled."""
        self.in_a_row = 0
        self._bad_steps.resume(first_step)

    @contextlib.contextmanager
    def stepping(self) -> Iterator[None]:
        """Inside are steps, and what comes between them."""
        self.watchdog.begin()
        with self.goodput.during("steps"):
            yield

    def step(self, compiles: bool) -> contextlib.AbstractContextManager[None]:
        """Inside, a step is dispatched; the first one is compiled before."""
        return self.goodput.during("compile" if compiles else "steps")

    def saw(self, line: dict[str, Any], in_a_row: int) -> None:
        """The numbers of a step are there.

        Args:
            line: step, tokens, loss, lr and grad_norm; of a good step only the step is needed.
            in_a_row: bad steps so far, this one included; 0 = it is good.

        Raises:
            RollBack: these are enough.
        """
        self.in_a_row = in_a_row
        self.watchdog.step()
        self.goodput.stepped(line["step"])
        if in_a_row:
            self.goodput.discard(line["step"])
            self._bad_steps.saw(line, in_a_row)

    def logged(self, step: int) -> dict[str, Any]:
        """What the line of a step says of where the time went."""
        spent = self.goodput.logged(step)
        seconds = {kind: round(value, 3) for kind, value in spent.seconds.items()}
        return {"goodput": spent.goodput, "goodput_seconds": seconds}

    @contextlib.contextmanager
    def pause(self, name: str) -> Iterator[None]:
        """Inside is no step, but something that has a name, such as "a validation"."""
        with self.goodput.during("validate"), self.watchdog.phase(name):
            yield

    def save(self, step: int, state: TrainState, line: dict[str, Any]) -> None:
        """Starts to write a checkpoint.

        Args:
            step: steps done.
            state: after them.
            line: by which readers see how the run ended, should the state be bad.

        Raises:
            RollBack: the state holds numbers that are not finite: the update may overflow after a finite loss.
            OSError: this save or the one before could not be written.
        """
        schedule = self.run.schedule
        if not guard.is_finite(state):
            raise self._bad_steps.not_finite(line)
        meta = {
            "config": cfg.to_dict(self.run.config),
            "data": self.run.data.training.fingerprint,
            "rollbacks": len(self.rollbacks),
            "sequences": schedule.first_sequence(step),
            "tokens": schedule.tokens(step),
        }
        with self.goodput.save_stall(), self.watchdog.phase("a save"):
            self.checkpoints.save(step, state, meta)

    def wait(self) -> None:
        """Waits until the last save is on disk."""
        with self.goodput.during("save"), self.watchdog.phase("finishing a save"):
            self.checkpoints.wait()

    def close(self) -> None:
        """Closes the files of its own."""
        self._bad_steps.close()
