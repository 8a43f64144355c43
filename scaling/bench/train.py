"""Training speed of one step, with random tokens and no data or logging: what ``scaling bench train`` measures."""

import dataclasses
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from scaling.bench.compare import median, ratio, speed
from scaling.bench.peer import Peer
from scaling.bench.quiet import Timing
from scaling.catalog import flops
from scaling.catalog.sizes import GPT3
from scaling.config import schema as cfg
from scaling.config.resolve import resolve
from scaling.data.batch import of_sequences
from scaling.objectives.pretraining import pretraining
from scaling.parallel.mesh import make_mesh
from scaling.parallel.sharding import batch_sharding
from scaling.plan.compiled import shard_bytes
from scaling.train import throughput
from scaling.train.state import create_state, parameter_count
from scaling.train.step import make_train_step

VOCABULARY = 50304  # GPT-2's, padded to a multiple of 128


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model and the sequences of one step of it; ``remat`` is what it is timed with by default."""

    num_layers: int
    d_model: int
    num_heads: int
    vocab_size: int
    sequences: int
    length: int = 256
    remat: str = "none"


def _gpt3(name: str, sequences: int, remat: str) -> Shape:
    size = GPT3[name]
    return Shape(size.num_layers, size.d_model, size.num_heads, VOCABULARY, sequences, size.context_length, remat)


CPU = {
    "16m": Shape(4, 256, 4, VOCABULARY, 8),
    "11m": Shape(6, 384, 6, 256, 12),
    "124m": Shape(12, 768, 12, VOCABULARY, 2),
}
# One chip of 80 GB holds each: state and gradients 16 bytes a parameter, and what remat keeps of the activations.
ACCELERATOR = {
    "125m": _gpt3("125m", 16, "none"),
    "350m": _gpt3("350m", 8, "none"),
    "1300m": _gpt3("1300m", 8, "projections"),
    "2700m": _gpt3("2700m", 4, "projections"),
}
SHAPES = CPU | ACCELERATOR


@dataclasses.dataclass(frozen=True)
class Setting:
    """How training is timed; what is None or 0 depends on the device and the shape.

    Attributes:
        dtype: of the matrix products; float32 on CPUs, else bfloat16.
        remat: what the backward pass recomputes; the shape's.
        sequences: of a step; the shape's.
        peer_mode: eager or compile; of PyTorch: eager on CPUs, else compile.
    """

    dtype: str | None = None
    remat: str | None = None
    sequences: int = 0
    peer_mode: str | None = None


def shapes() -> list[str]:
    """What is timed on this machine if nothing else is asked for."""
    return list(CPU if on_cpu() else ACCELERATOR)


def on_cpu() -> bool:
    """Whether this process computes on the CPU."""
    return jax.default_backend() == "cpu"


def bench(names: Sequence[str], repetitions: int, setting: Setting, peer: Peer | None) -> Iterator[str]:
    """Times steps of some shapes, ours and the peer's.

    On a CPU, whose speed others change from second to second, calls take turns. On a GPU the peer measures everything
    first and ends, so that neither side holds memory that the other needs.

    Args:
        names: of ``SHAPES``.
        repetitions: timed steps of each, after two of ours and one of the peer's for warm-up.
        setting: precision, recomputation and so on.
        peer: PyTorch, or None.

    Yields:
        Lines of text.

    Raises:
        ValueError: a shape does not fit the device, or the peer cannot work beside this one.
    """
    if peer and jax.default_backend() not in ("cpu", "gpu"):
        raise ValueError(f"--peer: PyTorch is timed on CPUs and GPUs, and this is a {jax.default_backend()}")
    tasks = [_Task.of(name, setting) for name in names]
    theirs = {task.name: _Theirs(peer) for task in tasks} if peer else {}
    if peer and not on_cpu():
        for task in tasks:
            for _ in range(repetitions):
                theirs[task.name].measure(task)
        peer.close()
    for task in tasks:
        yield from _bench(task, repetitions, theirs.get(task.name))


@dataclasses.dataclass(frozen=True)
class _Task:
    """A shape with its setting filled in."""

    name: str
    shape: Shape
    dtype: str
    peer_mode: str

    @classmethod
    def of(cls, name: str, setting: Setting) -> "_Task":
        shape = SHAPES[name]
        shape = dataclasses.replace(
            shape, remat=setting.remat or shape.remat, sequences=setting.sequences or shape.sequences
        )
        dtype = setting.dtype or ("float32" if on_cpu() else "bfloat16")
        return cls(name, shape, dtype, setting.peer_mode or ("eager" if on_cpu() else "compile"))

    @property
    def tokens(self) -> int:
        return self.shape.sequences * self.shape.length


class _Theirs:
    """The peer's side of one task: timings, and what did them."""

    def __init__(self, peer: Peer):
        self._peer = peer
        self.timings: list[Timing] = []
        self.name = ""
        self.memory = 0

    def measure(self, task: _Task) -> None:
        """Once more."""
        shape = task.shape
        timing = self._peer.measure(
            "train",
            num_layers=shape.num_layers,
            d_model=shape.d_model,
            num_heads=shape.num_heads,
            vocab_size=shape.vocab_size,
            sequence_length=shape.length,
            sequences=shape.sequences,
            device="cpu" if on_cpu() else "cuda",
            dtype=task.dtype,
            compile=task.peer_mode == "compile",
        )
        self.timings.append(timing)
        self.name, self.memory = f"{self._peer.version}, {self._peer.how}", self._peer.memory


def _bench(task: _Task, repetitions: int, theirs: _Theirs | None) -> Iterator[str]:
    shape = task.shape
    try:
        work = _Steps(task)
        ours = []
        for number in range(repetitions + 2):
            timing = work.step()
            if number < 2:
                continue
            ours.append(timing)
            if theirs and on_cpu():
                theirs.measure(task)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ValueError(
            f"--shapes: {task.name} with {shape.sequences} sequences and remat {shape.remat} does not fit the memory; "
            "use --remat=full or fewer --sequences"
        ) from None
    yield (
        f"train {task.name}, {work.parameters:,} parameters, {shape.sequences} x {shape.length} tokens, {task.dtype}, "
        f"remat {shape.remat}, {work.kind}: {speed(ours, task.tokens)}, MFU {100 * work.mfu(median(ours)):.0f} %"
    )
    yield (
        f"  compiled in {work.compile_seconds:.1f} s; {work.memory / 2**30:.2f} GiB a device, "
        f"{work.state_bytes / 2**30:.2f} of them parameters and optimizer; dispatch "
        f"{1e3 * statistics.median(work.dispatch[2:]):.2f} ms; peak {work.peak.source}"
    )
    if theirs:
        memory = f", {theirs.memory / 2**30:.2f} GiB" if theirs.memory else ""
        mfu = 100 * work.mfu(median(theirs.timings))
        yield f"  {theirs.name}: {speed(theirs.timings, task.tokens)}, MFU {mfu:.0f} %{memory}"
        yield ratio(ours, theirs.timings)


class _Steps:
    """A model in training on random tokens: on all virtual devices of a CPU, on one accelerator."""

    def __init__(self, task: _Task):
        shape = task.shape
        devices = jax.devices() if on_cpu() else jax.devices()[:1]
        config = cfg.Config(
            model=cfg.Model(
                vocab_size=shape.vocab_size,
                context_length=shape.length,
                num_layers=shape.num_layers,
                d_model=shape.d_model,
                num_heads=shape.num_heads,
            ),
            compute=cfg.Compute(dtype=task.dtype, remat=shape.remat, scan_unroll=shape.num_layers if on_cpu() else 1),
            train=cfg.Train(tokens=10**9, batch_tokens=task.tokens, microbatch_sequences=shape.sequences),
            optimizer=cfg.Optimizer(warmup_tokens=0),
        )
        self._config = resolve(config, device_count=len(devices))
        self._mesh = make_mesh(self._config.mesh, devices)
        with jax.set_mesh(self._mesh):
            self._state: Any = create_state(self._config, self._mesh)
            size = (1, shape.sequences, shape.length + 1)
            tokens = np.random.default_rng(0).integers(0, shape.vocab_size, size).astype(np.int32)
            self._batch = jax.device_put(of_sequences(tokens), batch_sharding(self._mesh))
            step: Any = make_train_step(self._config, self._mesh, pretraining(self._config))
            start = time.perf_counter()
            self._run = step.lower(self._state, self._batch, *self._scalars()).compile()
        self.compile_seconds = time.perf_counter() - start
        self.state_bytes = shard_bytes(self._state)
        found = self._run.memory_analysis()
        self.memory = found.argument_size_in_bytes + found.temp_size_in_bytes + found.output_size_in_bytes
        self.memory -= found.alias_size_in_bytes
        self.parameters = parameter_count(self._state["params"])
        self.peak = throughput.peak(devices)
        self.kind = devices[0].device_kind
        self.dispatch: list[float] = []

    def _scalars(self) -> tuple[Any, Any]:
        return np.float32(3e-4), np.int32(1)

    def step(self) -> Timing:
        with jax.set_mesh(self._mesh), Timing(shared=on_cpu()) as timing:
            start = time.perf_counter()
            self._state, metrics = self._run(self._state, self._batch, *self._scalars())
            self.dispatch.append(time.perf_counter() - start)
            jax.block_until_ready((self._state, metrics))
        return timing

    def mfu(self, seconds: float) -> float:
        length = self._config.train.sequence_length
        work = flops.training_per_token(self._config.model, length) * self._config.train.batch_tokens
        return work / seconds / self.peak.flops
