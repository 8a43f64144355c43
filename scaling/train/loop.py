"""The training loop: dispatch step N, then look at step N-1; validate, save, stop when told."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from scaling import config as cfg
from scaling import exit_codes
from scaling.data.bad_records import BadRecords
from scaling.evaluate import records
from scaling.evaluate.in_loop import InLoopTasks
from scaling.parallel.distributed import total_of_processes
from scaling.runs.checkpoint import Checkpoints
from scaling.train.batch_hash import BatchHashes
from scaling.train.metrics import Console, MetricWriter
from scaling.train.reliability import guard
from scaling.train.reliability.bad_steps import BadSteps
from scaling.train.reliability.goodput import Goodput
from scaling.train.reliability.watchdog import Watchdog
from scaling.train.schedule import BatchSchedule, learning_rate
from scaling.train.signals import StopRequest
from scaling.train.state import TrainState

_WINDOW_SECONDS = 0.5  # speeds are measured over at least this long


@dataclasses.dataclass
class Loop:
    """Everything a run needs, made once by ``scaling.train.run``."""

    config: cfg.Config
    schedule: BatchSchedule
    train_step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    evaluate: Callable[[Any], dict[str, float]]  # parameters -> loss and tokens on the validation set
    tasks: InLoopTasks | None
    batches: Iterator[dict[str, jax.Array]]
    checkpoints: Checkpoints
    meta: dict[str, Any]  # goes into every checkpoint
    flops_per_token: float
    peak_flops: float
    writer: MetricWriter | None  # None on all processes but the first
    console: Console | None
    goodput: Goodput
    bad_steps: BadSteps
    watchdog: Watchdog
    hashes: BatchHashes | None = None
    bad_records: BadRecords | None = None  # None = they are errors

    def run(self, state: TrainState, first_step: int, stop: StopRequest) -> tuple[TrainState, int]:
        """Trains from ``first_step`` to the end of the schedule.

        Returns:
            The final state, and an exit code: 0 at the end, else that of the signal which stopped it.

        Raises:
            RollBack: too many bad steps in a row, or weights that are not finite, which are not saved.
            OSError: a checkpoint could not be written.
        """
        self.watchdog.begin()
        with self.goodput.during("steps"):
            return self._run(state, first_step, stop)

    def _run(self, state: TrainState, first_step: int, stop: StopRequest) -> tuple[TrainState, int]:
        last = self.schedule.num_steps
        self._clock(first_step)
        pending: tuple[int, dict[str, Any]] | None = None
        owed = False  # a save that fell among bad steps, and waits for a good one
        for step in range(first_step, last):
            _, sequences = self.schedule.span(step)
            done = step + 1
            lr = learning_rate(self.config.optimizer, self.schedule.tokens(done), self.config.train.tokens)
            batch = next(self.batches)
            with self.goodput.during("compile" if step == first_step else "steps"):
                state, metrics = self.train_step(state, batch, lr, sequences // self.schedule.microbatch)
            if pending:
                self._log(*pending)
            pending = (done, {**metrics, "lr": lr, "batch": self.hashes.popped() if self.hashes else None})
            validates = done < last and _due(done, self.config.eval.every_steps)
            runs_tasks = done < last and self.tasks and _due(done, self.config.eval.tasks_every_steps)
            saves = owed or _due(done, self.config.checkpoint.every_steps)
            # Agreeing waits for the devices, so several processes do it only when they wait anyway.
            asks = done % self.config.log.every_steps == 0 or saves or done == last
            stopped = stop.agreed() if asks or jax.process_count() == 1 else exit_codes.OK
            if validates or runs_tasks or saves or stopped or done == last:
                self._log(*pending)  # before a save: a diverged state must not become a checkpoint
                pending = None
            if validates and not stopped:
                self.validate(done, state)
            if runs_tasks and not stopped:
                self.evaluate_tasks(done, state)
            owed = saves and self._in_a_row > 0
            if (saves and not owed) or stopped or done == last:
                self.save(done, state, lr)
            if stopped:
                self._wait()
                if validates:  # after the save: whoever sent the signal may not wait for it
                    self.validate(done, state)
                self.note(f"stopped by a signal after step {done}; saved, and the same command goes on from there")
                return state, stopped
        self._wait()
        return state, exit_codes.OK

    def _wait(self) -> None:
        with self.goodput.during("save"), self.watchdog.phase("finishing a save"):
            self.checkpoints.wait()

    def validate(self, step: int, state: TrainState) -> float:
        """Writes the validation loss of a step to evals.jsonl and returns it, nats a token."""
        start = time.monotonic()
        with self.goodput.during("validate"), self.watchdog.phase("a validation"):
            result = self.evaluate(state["params"])
        record = {"step": step, "tokens": self.schedule.tokens(step), **result}
        if self.writer:
            self.writer.evaluation(record)
        self.note(f"step {step}  validation loss {result['loss']:.4f}  ({time.monotonic() - start:.1f} s)")
        self._paused += time.monotonic() - start
        return result["loss"]

    def evaluate_tasks(self, step: int, state: TrainState) -> None:
        """Writes the results of ``config.eval.tasks`` at a step to evals.jsonl."""
        if not self.tasks:
            return
        start = time.monotonic()
        with self.goodput.during("validate"), self.watchdog.phase("the tasks"):
            results = self.tasks.run(state["params"])
        seconds = time.monotonic() - start
        if self.writer:
            for result in results:
                self.writer.task({"step": step, "tokens": self.schedule.tokens(step)} | records.record(result))
        self.note(f"step {step}  tasks ({seconds:.1f} s)\n{records.table(results)}")
        self._paused += seconds

    def save(self, step: int, state: TrainState, lr: float) -> None:
        start = time.monotonic()
        first, _ = self.schedule.span(step)
        if not guard.is_finite(state):  # the update itself may overflow: the loss was that of before it
            raise self.bad_steps.not_finite(self._line(step, math.nan, lr, math.nan))
        with self.goodput.save_stall(), self.watchdog.phase("a save"):
            self.checkpoints.save(step, state, dict(self.meta, sequences=first, tokens=self.schedule.tokens(step)))
        self._paused += time.monotonic() - start

    def _clock(self, step: int) -> None:
        self._started = self._window_start = time.monotonic()
        self._first_step = self._window_step = step
        self._paused = 0.0  # seconds of the window spent on validation and saving
        self._in_a_row = 0  # bad steps, as of the last one looked at

    def _line(self, step: int, loss: float, lr: float, norm: float) -> dict[str, Any]:
        return {"step": step, "tokens": self.schedule.tokens(step), "loss": loss, "lr": lr, "grad_norm": norm}

    def _log(self, step: int, metrics: dict[str, Any]) -> None:
        """Waits for a step's loss; checks it (on every process, so that all stop together); writes it if it is due."""
        due = step % self.config.log.every_steps == 0 or step == self.schedule.num_steps or step == 1
        names = ("loss", "grad_norm", "skipped", "bad_in_a_row")
        loss, norm, skipped, self._in_a_row = (x.item() for x in jax.device_get([metrics[name] for name in names]))
        self.watchdog.step()
        self.goodput.stepped(step)
        line = self._line(step, loss, metrics["lr"], norm)
        if self._in_a_row:
            self.goodput.discard(step)
            self.bad_steps.saw(line, self._in_a_row)
            due &= math.isfinite(loss) and math.isfinite(norm)  # readers take such a line for the end of the run
        if not due:
            return
        now = time.monotonic()
        tokens = self.schedule.tokens(step)
        seconds = max(now - self._window_start - self._paused, 1e-9)
        rate = (tokens - self.schedule.tokens(self._window_step)) / seconds
        record = line | {
            "tokens_per_second": rate,
            "mfu": rate * self.flops_per_token / self.peak_flops,
            "flops": tokens * self.flops_per_token,
            "seconds": now - self._started,
            "skipped": skipped,
        }
        spent = self.goodput.logged(step)
        record["goodput"] = spent.goodput
        record["goodput_seconds"] = {kind: round(value, 3) for kind, value in spent.seconds.items()}
        if self.bad_records:
            record["bad_records"] = self.bad_records.known + total_of_processes(self.bad_records.new)
        if self.hashes:
            record["batch_hash"] = self.hashes.combined(metrics["batch"])
        compiled = self._window_step == self._first_step  # the first window holds the compilation
        if compiled or seconds > _WINDOW_SECONDS:
            self._window_start, self._window_step, self._paused = now, step, 0.0
        if self.writer:
            self.writer.train(record)
        if self.console:
            remaining = self.schedule.tokens(self.schedule.num_steps) - tokens
            self.console.update(record, None if compiled else remaining / rate)

    def close(self) -> None:
        """Closes the files; another loop may then go on with them."""
        for part in (self.bad_steps, self.writer, self.console):
            if part:
                part.close()

    def note(self, text: str) -> None:
        """A line on the console of the first process."""
        if self.console:
            self.console.note(text)


def _due(step: int, every: int) -> bool:
    """Whether a step is a multiple of an interval; 0 = never."""
    return bool(every) and step % every == 0
