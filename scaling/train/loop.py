"""The training loop: dispatch step N, then look at step N-1; save, call the hooks, stop when told."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from scaling import exit_codes
from scaling.data.batch import Batch
from scaling.train.feed import Feed
from scaling.train.metrics import Log
from scaling.train.reliability.recompute import TrainStep, checked
from scaling.train.reliability.watch import Watch
from scaling.train.run import Run
from scaling.train.schedule import learning_rate
from scaling.train.signals import StopRequest
from scaling.train.speed import Speed
from scaling.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class Hook:
    """What a run does beside its steps: at an interval, and once more at its end.

    Attributes:
        name: with its article, for the message about a run that hangs in it.
        run: is given the number of steps done, and the state after them.
        every: interval in steps; 0 = only at the end.
        when_stopped: if a signal stops the run at a step where the hook is due, it still runs, after the save.
    """

    name: str
    run: Callable[[int, TrainState], None]
    every: int = 0
    when_stopped: bool = False


@dataclasses.dataclass(frozen=True)
class _Dispatched:
    """A step that the devices may still be computing.

    Attributes:
        done: steps done with it.
        metrics: of ``make_train_step``.
        lr: learning rate.
        batch: the host's copy, where it is needed for the line of the step.
    """

    done: int
    metrics: dict[str, jax.Array]
    lr: float
    batch: Batch | None


@dataclasses.dataclass
class Loop:
    """The steps of a run. ``begin`` comes before ``train``, at the start of the run and after each roll-back."""

    run: Run
    train_step: TrainStep
    hooks: Sequence[Hook]
    log: Log
    watch: Watch
    speed: Speed
    waits: bool = False  # for the devices in each step, as some steps of recipes do

    def begin(self, first_step: int) -> None:
        """Makes ready to go on after so many steps; lines of later ones are dropped."""
        self._first_step = first_step
        self._feed = Feed(self.run, self.watch.rollbacks, first_step)
        self.log.resume(first_step)
        self._step = checked(self.train_step, self.run.config.guard.recompute_every_steps, first_step)
        self.watch.begin(first_step)

    def train(self, state: TrainState, stop: StopRequest) -> tuple[TrainState, int]:
        """Trains to the end of the schedule.

        Args:
            state: after the steps that ``begin`` was given.
            stop: asked between steps.

        Returns:
            The final state, and an exit code: 0 at the end, else that of the signal which stopped it.

        Raises:
            RollBack: too many bad steps in a row, or weights that are not finite, which are not saved.
            Faulty: a step computed twice gave two results.
            OSError: a checkpoint could not be written.
        """
        with self.watch.stepping():
            return self._train(state, stop)

    def _train(self, state: TrainState, stop: StopRequest) -> tuple[TrainState, int]:
        config, last = self.run.config, self.run.schedule.num_steps
        self.speed.start(self._first_step)
        pending: _Dispatched | None = None
        owed = False  # a save that fell among bad steps, and waits for a good one
        for done in range(self._first_step + 1, last + 1):
            state, latest = self._dispatch(done, state)
            if pending:
                self._look(pending)
            pending = latest
            due = [hook for hook in self.hooks if done < last and _is_due(done, hook.every)]
            saves = owed or _is_due(done, config.checkpoint.every_steps)
            if config.checkpoint.choose:  # among the steps with a validation
                saves |= _is_due(done, config.eval.every_steps)
            # Agreeing waits for the devices, so several processes do it only when they wait anyway.
            asks = done % config.log.every_steps == 0 or saves or done == last
            stopped = stop.agreed() if asks or jax.process_count() == 1 else exit_codes.OK
            if due or saves or stopped or done == last or self.waits:
                self._look(pending)  # before a save: a diverged state must not become a checkpoint
                pending = None
            if not stopped:
                self._call(due, done, state)
            owed = saves and self.watch.in_a_row > 0
            if (saves and not owed) or stopped or done == last:
                with self.speed.paused():
                    self.watch.save(done, state, self._line(done, math.nan, latest.lr, math.nan))
            if stopped:
                self.watch.wait()
                # After the save: whoever sent the signal may not wait for it.
                self._call((hook for hook in due if hook.when_stopped), done, state)
                self.log.note(f"stopped by a signal after step {done}; saved, and the same command goes on from there")
                return state, stopped
        self.watch.wait()
        return state, exit_codes.OK

    def finish(self, state: TrainState) -> None:
        """Calls every hook after the last step."""
        self._call(self.hooks, self.run.schedule.num_steps, state)

    def _dispatch(self, done: int, state: TrainState) -> tuple[TrainState, _Dispatched]:
        """Starts a step; the state and the numbers are not computed yet when it returns."""
        config, schedule = self.run.config, self.run.schedule
        _, sequences = schedule.span(done - 1)
        lr = learning_rate(config.optimizer, schedule.tokens(done), config.train.tokens)
        batch, host = next(self._feed)
        with self.watch.step(compiles=done == self._first_step + 1):
            state, metrics = self._step(state, batch, lr, sequences // schedule.microbatch)
        return state, _Dispatched(done, metrics, lr, host)

    def _look(self, step: _Dispatched) -> None:
        """Waits for a step's loss; checks it (on every process, so that all stop together); writes it if it is due."""
        done, metrics = step.done, step.metrics
        due = done % self.run.config.log.every_steps == 0 or done == self.run.schedule.num_steps or done == 1
        if not due and not int(metrics["bad_in_a_row"]):  # one number of a good step is enough
            self.watch.saw({"step": done}, 0)
            return
        numbers = {name: x.tolist() for name, x in jax.device_get(metrics).items()}
        loss, norm, skipped, in_a_row = (numbers.pop(name) for name in ("loss", "grad_norm", "skipped", "bad_in_a_row"))
        line = self._line(done, loss, step.lr, norm)
        self.watch.saw(line, in_a_row)
        if in_a_row:  # readers take a line without numbers for the end of the run
            due &= math.isfinite(loss) and math.isfinite(norm)
        if not due:
            return
        speed, seconds_left = self.speed.measure(done)
        line |= numbers | speed | {"skipped": skipped} | self.watch.logged(done) | self._feed.logged(step.batch)
        self.log.step(line)
        self.log.show(line, seconds_left)

    def _line(self, step: int, loss: float, lr: float, norm: float) -> dict[str, Any]:
        return {"step": step, "tokens": self.run.schedule.tokens(step), "loss": loss, "lr": lr, "grad_norm": norm}

    def _call(self, hooks: Iterable[Hook], step: int, state: TrainState) -> None:
        for hook in hooks:
            with self.speed.paused(), self.watch.pause(hook.name):
                hook.run(step, state)


def _is_due(step: int, every: int) -> bool:
    """Whether a step is a multiple of an interval; 0 = never."""
    return bool(every) and step % every == 0
