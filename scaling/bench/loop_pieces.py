"""The pieces of the loop's work beside the step, each timed alone on the objects of a training."""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scaling.bench.quiet import Timing, repeated
from scaling.config import schema as cfg
from scaling.data import loader
from scaling.data.batch import Batch
from scaling.objectives.objective import Sums
from scaling.parallel.sharding import batch_sharding
from scaling.runs import checkpoint
from scaling.train import placement
from scaling.train.batch_hash import BatchHashes
from scaling.train.loop import Loop
from scaling.train.metrics import Console, MetricWriter
from scaling.train.reliability import guard
from scaling.train.reliability.recompute import TrainStep, checked
from scaling.train.reliability.watch import Watch
from scaling.train.run import Run
from scaling.train.schedule import learning_rate
from scaling.train.signals import StopRequest
from scaling.train.state import TrainState
from scaling.train.step import make_train_step

LOG, SAVE = cfg.Log().every_steps, cfg.Checkpoint().every_steps  # steps between lines, and between checkpoints
STEP = 0.1  # seconds of the step of which shares are given
_REPEATS = 25
_LEAST_SECONDS = 1e-3
_BAR_SECONDS = 5.0
_LONGEST = 300.0


@dataclasses.dataclass(frozen=True)
class Piece:
    """What one piece of the loop's work costs.

    Attributes:
        name: what it is.
        kind: "reliability", "logging" or "feeding".
        seconds: of a call, wall time, the median.
        least: of a call, wall time.
        cpu: CPU seconds of a call, the median: on a machine with other work the better figure.
        every: steps between two calls.
        device: "computes" the step that was dispatched before, "waits", or "does it" itself.
        default: whether it is on if no knob says otherwise.
    """

    name: str
    kind: str
    seconds: float
    least: float
    cpu: float
    every: int = 1
    device: str = "computes"
    default: bool = True

    @classmethod
    def of(cls, name: str, kind: str, timings: Sequence[Timing], calls: int = 1, **more: Any) -> "Piece":
        """Of some timings of so many calls each."""
        walls = [timing.seconds / calls for timing in timings]
        cpu = statistics.median(timing.cpu / calls for timing in timings)
        return cls(name, kind, statistics.median(walls), min(walls), cpu, **more)

    def less(self, other: "Piece", name: str) -> "Piece":
        """What it costs beyond the other, which is a part of it or does the same without it."""
        costs = {of: max(0.0, getattr(self, of) - getattr(other, of)) for of in ("seconds", "least", "cpu")}
        return dataclasses.replace(self, name=name, **costs)


@dataclasses.dataclass
class Training:
    """The parts of a training.

    Attributes:
        run, step, loop, watch: as ``scaling train`` puts them together.
        stop: of the signals.
        state: after the last step.
    """

    run: Run
    step: TrainStep
    loop: Loop
    watch: Watch
    stop: StopRequest = dataclasses.field(default_factory=StopRequest)
    state: TrainState | None = None

    @property
    def rows(self) -> np.ndarray:
        """Of a microbatch, those that this process reads."""
        return placement.local_rows(batch_sharding(self.run.mesh), self.run.schedule.microbatch)

    def host_batch(self, step: int = 0) -> Batch:
        """A batch, read as the loader's threads do."""
        schedule = self.run.schedule
        rows = self.rows, schedule.microbatch, schedule.max_microbatches
        return loader.Steps(self.run.data.training, schedule.span, *rows).batch(step)

    def batch(self) -> Batch:
        """The first batch on the devices."""
        return self.placed(self.host_batch())

    def placed(self, batch: Batch) -> Batch:
        """A batch of the loader on the devices."""
        return placement.place(batch, self.rows, self.run.schedule.microbatch, batch_sharding(self.run.mesh))


def alone(here: Training) -> Iterator[Piece]:
    """Times each piece by itself."""
    last = here.run.schedule.num_steps
    here.state, numbers = here.step(here.state, here.batch(), 1e-4, 1)
    line = {"step": last, "tokens": here.run.schedule.tokens(last), "lr": 1e-4}
    line |= {name: value.tolist() for name, value in jax.device_get(numbers).items()}
    yield from _each_step(here, line, numbers)
    yield from _logging(here, line)
    yield from _saving(here, line)
    yield from _feeding(here)
    yield from _two_processes()
    yield _recomputing(here)


def _each_step(here: Training, line: dict[str, Any], numbers: dict[str, jax.Array]) -> Iterator[Piece]:
    watch, schedule, optimizer = here.watch, here.run.schedule, here.run.config.optimizer

    def told() -> None:
        with watch.step(compiles=False):
            pass
        watch.saw(line, 0)

    yield _piece("clock of goodput, sign of life for the watchdog", "reliability", told)
    yield _piece("question for signals, one process", "reliability", here.stop.agreed)
    yield _guarding(here)
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
    # Arrays keep what was fetched, so each call has new ones.
    fresh = iter(jax.block_until_ready([copy(numbers) for _ in range(_REPEATS * 20 + 2)]))
    yield _piece("loss and norm to the host", "logging", lambda: jax.device_get(next(fresh)), calls=20)

    def rate() -> float:
        return learning_rate(optimizer, schedule.tokens(line["step"]), here.run.config.train.tokens)

    yield _piece("learning rate", "feeding", rate)


def _guarding(here: Training) -> Piece:
    """The guard's part of the compiled step: an update with it and one without, of gradients that cost little."""
    config, mesh, batch = here.run.config, here.run.mesh, here.batch()

    def objective(model: Any, *_: Any) -> Sums:
        total = jnp.stack([jnp.sum(x * x) for x in jax.tree.leaves(nnx.state(model))]).sum()
        return Sums(total, jnp.float32(1), {"loss": total})

    def update() -> TrainStep:
        step = make_train_step(config, mesh, objective)
        step(jax.tree.map(jnp.copy, here.state), batch, 1e-4, 1)  # traced here, where the guard is, or is not
        return step

    guarded, states = update(), [jax.tree.map(jnp.copy, here.state) for _ in range(2)]
    judges = mock.patch.object(guard, "judge", lambda state, *_: (True, state))
    with judges, mock.patch.object(guard, "keep_if", lambda good, new, old: new):
        steps = guarded, update()
    timings: tuple[list[Timing], list[Timing]] = [], []
    for _ in range(8 * _REPEATS):
        for side, step in enumerate(steps):
            with Timing() as timing:
                states[side], _ = step(states[side], batch, 1e-4, 1)
                jax.block_until_ready(states[side])
            timings[side].append(timing)
    with_it, without = (Piece.of("", "reliability", side, device="does it") for side in timings)
    return with_it.less(without, "guard in the compiled step")


def _logging(here: Training, line: dict[str, Any]) -> Iterator[Piece]:
    config, last = here.run.config, line["step"]
    yield _piece("goodput and its file", "reliability", lambda: here.watch.logged(last), every=LOG)
    later = itertools.count(last + 1)
    yield _piece("speed and MFU", "logging", lambda: here.loop.speed.measure(next(later)), every=LOG)
    speed, left = here.loop.speed.measure(next(later))
    record, found = line | speed | here.watch.logged(last), []
    for tensorboard in (False, True):
        made = dataclasses.replace(config, log=dataclasses.replace(config.log, tensorboard=tensorboard))
        folder = here.run.directory / f"tensorboard-{tensorboard}"
        folder.mkdir()
        with contextlib.closing(MetricWriter(folder, made, 0, finished=False)) as writer:
            write = functools.partial(writer.train, record)
            found.append(_piece("metrics.jsonl", "logging", write, calls=50, every=LOG))
    file, both = found
    yield file
    yield both.less(file, "TensorBoard")
    with _terminal():
        console, end = Console(last, 0), time.perf_counter() + _BAR_SECONDS
        with Timing() as timing:
            while time.perf_counter() < end:
                console.update(record, left)
                time.sleep(LOG * STEP)
        console.close()
    cpu = timing.cpu / timing.seconds * STEP
    yield Piece("progress bar on a terminal", "logging", cpu, cpu, cpu)


def _saving(here: Training, line: dict[str, Any]) -> Iterator[Piece]:
    watch, state, last = here.watch, here.state, line["step"]
    assert state is not None
    stalls, rests = list[Timing](), list[Timing]()
    for number in range(1, 8):
        jax.block_until_ready(state)
        with Timing() as stall:
            watch.save(last + number, state, line)
        with Timing() as rest:
            watch.wait()
        stalls.append(stall)
        rests.append(rest)
    path = watch.checkpoints.directory / f"{last + number:09d}"
    size = sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
    finite = _piece("are all numbers finite, before a save", "reliability", lambda: guard.is_finite(state), every=SAVE)
    finite = dataclasses.replace(finite, device="waits")
    yield finite
    whole = Piece.of("", "reliability", stalls, every=SAVE, device="waits")
    yield whole.less(finite, "a save, until the loop goes on")
    sums = _piece("", "reliability", lambda: checkpoint.verify(path), every=SAVE)
    yield dataclasses.replace(sums, name=f"checksums of a save of {size / 1e6:.0f} MB")
    yield Piece.of("", "reliability", rests, every=SAVE).less(sums, "a save's writing and syncing")


def _feeding(here: Training) -> Iterator[Piece]:
    batch, config = here.host_batch(), here.run.config
    hashes = BatchHashes(here.rows, here.run.schedule.microbatch)
    hashed = _piece("hash of the batch", "reliability", lambda: hashes.combined(batch), every=LOG)
    yield dataclasses.replace(hashed, default=config.log.batch_hash)
    yield _piece("batch to the device", "feeding", lambda: jax.block_until_ready(here.placed(batch)))
    yield _piece("batch by the loader's threads", "feeding", lambda: here.host_batch(3))


def _recomputing(here: Training) -> Piece:
    """A step that is computed twice and compared, less one that is not."""
    batch, found = here.batch(), []
    for every in (0, 1):
        step, timings = checked(here.step, every, 0), list[Timing]()
        for _ in range(6):
            with Timing() as timing:
                here.state, numbers = step(here.state, batch, 1e-4, 1)
                jax.block_until_ready((here.state, numbers))
            timings.append(timing)
        found.append(Piece.of("", "reliability", timings[1:], every=SAVE, device="does it", default=False))
    once, twice = found
    return twice.less(once, "a step computed twice")


def _two_processes() -> Iterator[Piece]:
    """What two processes of this machine tell each other; ``scaling.bench.agreement`` runs in each."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "scaling.bench.agreement", address]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([*command, str(process)], **pipes) for process in range(2)]
    try:
        (said, wrong), _ = [process.communicate(timeout=_LONGEST) for process in both]
    finally:
        for process in both:
            process.kill()
    if both[0].returncode:
        raise ValueError(f"two processes could not agree: {(wrong.strip().splitlines() or ['?'])[-1]}")
    for name, times in json.loads(said.strip().splitlines()[-1]).items():  # Gloo writes lines of its own before
        timings = [Timing(seconds, cpu) for seconds, cpu in times]
        yield Piece.of(f"two processes: {name}", "reliability", timings, every=LOG, device="waits", default=False)


def _piece(name: str, kind: str, call: Callable[[], Any], calls: int = 0, **more: Any) -> Piece:
    """Times a call on the host, ``calls`` of them at a time; 0 = as many as take a millisecond."""
    call()
    with Timing() as timing:
        call()
    calls = calls or max(1, int(_LEAST_SECONDS / timing.seconds))
    return Piece.of(name, kind, repeated(call, _REPEATS, calls), calls, **more)


@contextlib.contextmanager
def _terminal() -> Iterator[None]:
    """Standard error is a terminal that nobody looks at."""
    ours, theirs = os.openpty()
    drain = threading.Thread(target=_drain, args=(ours,), daemon=True)
    drain.start()
    try:
        with os.fdopen(theirs, "w") as file, contextlib.redirect_stderr(file):
            yield
    finally:
        drain.join()
        os.close(ours)


def _drain(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # the other end is closed
        while os.read(descriptor, 1 << 16):
            pass
