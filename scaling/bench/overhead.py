"""What a training costs beside its steps, piece by piece: what ``scaling bench overhead`` measures.

A small model is trained by the product's own loop. A hook of the loop runs the same compiled step in a plain ``for``
loop, in turns with the product's steps. Then each piece is timed alone, on the objects of that run.
"""

import contextlib
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from etils import epath

from scaling.bench.loop_pieces import STEP, Piece, Training, alone
from scaling.bench.quiet import QUIET, Timing
from scaling.config import schema as cfg
from scaling.config.resolve import resolve
from scaling.data import tokenizer
from scaling.objectives.pretraining import pretraining
from scaling.parallel.mesh import make_mesh
from scaling.runs.checkpoint import Checkpoints
from scaling.train.loop import Hook, Loop
from scaling.train.metrics import Log
from scaling.train.reliability.goodput import Goodput
from scaling.train.reliability.rollbacks import Rollbacks
from scaling.train.reliability.watch import Watch
from scaling.train.reliability.watchdog import Watchdog
from scaling.train.run import Data, Run
from scaling.train.signals import stop_request
from scaling.train.speed import Speed
from scaling.train.state import TrainState, parameter_count
from scaling.train.step import make_train_step

TURN = 20  # steps of one side before the turn of the other
_WARM = 2  # turns that do not count: compilation, first files


def config(turns: int, log_every: int = 10) -> cfg.Config:
    """The demo's shape, whose step takes about 100 ms on two quiet cores; all else but the length is a default."""
    words = tokenizer.load("books")
    tokens = 2048 * jax.device_count()
    steps = TURN * (turns + _WARM + 1)  # the loop calls no hook at its last step, so its last turn is not timed
    given = cfg.Config(
        model=cfg.Model(context_length=128, num_layers=2, d_model=128, num_heads=4),
        compute=cfg.Compute(dtype="float32", loss_chunk=0),
        data=cfg.Data(tokenizer="books"),
        train=cfg.Train(tokens=tokens * steps, batch_tokens=tokens),
        optimizer=cfg.Optimizer(warmup_tokens=tokens),
        log=cfg.Log(every_steps=log_every),
        checkpoint=cfg.Checkpoint(every_steps=0),
    )
    return resolve(given, vocab_size=words.vocab_size, device_count=jax.device_count())


def bench(turns: int) -> Iterator[str]:
    """Compares the loop with a bare one, and times its pieces.

    Args:
        turns: of each side that count, ``TURN`` steps each.

    Yields:
        Lines of text: the comparison, and the table.
    """
    made = config(turns)
    with tempfile.TemporaryDirectory() as folder, training(made, epath.Path(folder)) as here:
        sides = _Sides(here)
        here.loop.hooks = [Hook("the bare loop", sides, TURN)]
        looks = list[float]()
        here.loop.begin(0)
        here.watch.goodput.begin(0)
        look = mock.patch.object(here.loop, "_look", _timed(here.loop._look, looks))
        with look, stop_request() as here.stop:
            here.state, _ = here.loop.train(here.run.fresh_state(), here.stop)
            yield from _compared(here, sides)
            yield (
                f"  of the latter, looking at a step, clocks and logging take {1e6 * statistics.mean(looks):,.0f} us a "
                f"step (median {1e6 * statistics.median(looks):,.0f}); the rest is feeding and dispatching"
            )
            yield from table(list(alone(here)))


@contextlib.contextmanager
def training(made: cfg.Config, folder: epath.Path) -> Iterator[Training]:
    """The parts of a training in a folder, as ``scaling train`` puts them together."""
    words = tokenizer.load(made.data.tokenizer)
    run = Run(made, folder, words, Data.of(made, words), make_mesh(made.mesh))
    step = make_train_step(made, run.mesh, pretraining(made))
    with contextlib.ExitStack() as stack:
        goodput = stack.enter_context(Goodput(folder))
        watchdog = stack.enter_context(Watchdog(made.guard.hang_seconds, folder, 0))
        checkpoints = stack.enter_context(contextlib.closing(Checkpoints(folder, made.checkpoint)))
        stack.enter_context(jax.set_mesh(run.mesh))
        log = stack.enter_context(contextlib.closing(Log(run)))
        watch = Watch(run, goodput, watchdog, checkpoints, Rollbacks(folder, run.schedule))
        stack.callback(watch.close)
        yield Training(run, step, Loop(run, step, [], log, watch, Speed(run, 1e12)), watch)


@dataclasses.dataclass
class _Turn(Timing):
    """Steps of one side; ``thread`` is the CPU time of the thread that dispatches them, seconds."""

    thread: float = 0.0

    def __enter__(self) -> "_Turn":
        super().__enter__()
        self.thread = -time.thread_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.thread += time.thread_time()
        super().__exit__()


class _Sides:
    """Turns of the product's loop and of a bare one, timed; a hook of the loop."""

    def __init__(self, here: Training):
        self.product, self.bare = list[_Turn](), list[_Turn]()
        self._here = here
        self._state: Any = None
        self._running: _Turn | None = None

    def __call__(self, _: int, state: TrainState) -> None:
        jax.block_until_ready(state)
        if self._running is not None:
            self._running.__exit__()
            self.product.append(self._running)
        if self._state is None:
            self._state = jax.tree.map(jnp.copy, state)
        batch = self._here.batch()
        with _Turn(shared=jax.default_backend() == "cpu") as bare:
            for _ in range(TURN):
                self._state, _metrics = self._here.step(self._state, batch, 1e-4, 1)
            jax.block_until_ready(self._state)
        self.bare.append(bare)
        self._running = _Turn(shared=bare.shared).__enter__()


def _timed(call: Callable[..., Any], into: list[float]) -> Callable[..., Any]:
    """The same, and adds the CPU seconds that its thread takes for it."""

    def timed(*given: Any) -> Any:
        start = time.thread_time()
        try:
            return call(*given)
        finally:
            into.append(time.thread_time() - start)

    return timed


def _compared(here: Training, sides: _Sides) -> Iterator[str]:
    assert here.state is not None
    run, pairs = here.run, list(zip(sides.product, sides.bare[1:], strict=False))[_WARM - 1 :]
    calm = [pair for pair in pairs if all(timing.others < QUIET for timing in pair)]
    used = calm or pairs
    bare = statistics.median(timing.seconds for _, timing in used) / TURN
    yield (
        f"{jax.devices()[0].device_kind}, {parameter_count(here.state['params']):,} parameters, "
        f"{run.config.train.batch_tokens:,} tokens a step; the bare loop takes {1e3 * bare:.1f} ms a step (median; "
        f"{len(calm)} of {len(pairs)} pairs of turns quiet{'' if calm else ', so all count'})"
    )
    for name, of in (
        ("wall time", "seconds"),
        ("CPU time of all threads", "cpu"),
        ("CPU time of the thread that dispatches the steps", "thread"),
    ):
        both = [(getattr(product, of) / TURN, getattr(plain, of) / TURN) for product, plain in used]
        extra = [1e6 * (product - plain) for product, plain in both]
        low, middle, high = statistics.quantiles(extra, n=4) if len(extra) > 1 else extra * 3
        yield (
            f"  the product's loop, {name}: {middle:+,.0f} us a step in the median of pairs (quartiles {low:+,.0f} to "
            f"{high:+,.0f}); the bare loop's is {1e6 * statistics.median(plain for _, plain in both):,.0f}"
        )


def table(pieces: Sequence[Piece]) -> Iterator[str]:
    """The pieces as a table in Markdown, with the sums of those that are on by default."""
    yield (
        "| piece | of | every | us a call (least) | CPU us a call | us a step | CPU us a step | CPU, % of 100 ms | "
        "the device meanwhile |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for piece in pieces:
        every = f"{piece.every} steps" if piece.every > 1 else "step"
        off = "" if piece.default else " (off by default)"
        yield (
            f"| {piece.name}{off} | {piece.kind} | {every} | {_us(piece.seconds)} ({_us(piece.least)}) | "
            f"{_us(piece.cpu)} | {_a_step([piece])} | {piece.device} |"
        )
    counted = [piece for piece in pieces if piece.default]
    ours = [piece for piece in counted if piece.kind != "feeding"]
    waits = [piece for piece in ours if piece.device != "computes"]
    yield f"| **reliability and logging** | | | | | {_a_step(ours)} | |"
    yield f"| of it, what the device waits for or does | | | | | {_a_step(waits)} | |"
    yield f"| with feeding | | | | | {_a_step(counted)} | |"


def _a_step(pieces: Sequence[Piece]) -> str:
    wall, cpu = (sum(getattr(piece, of) / piece.every for piece in pieces) for of in ("seconds", "cpu"))
    return f"{_us(wall)} | {_us(cpu)} | {100 * cpu / STEP:.3f}"


def _us(seconds: float) -> str:
    return f"{1e6 * seconds:,.1f}"
