"""Training speed of one step, with random tokens and no data or logging: what ``scaling bench train`` measures."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from scaling import config as cfg
from scaling import flops
from scaling.bench.compare import median, ratio, speed
from scaling.bench.peer import Peer
from scaling.bench.quiet import Timing
from scaling.parallel.mesh import make_mesh
from scaling.parallel.sharding import batch_sharding
from scaling.resolve import resolve
from scaling.train import throughput
from scaling.train.state import create_state, parameter_count
from scaling.train.step import make_train_step

# num_layers, d_model, num_heads, vocab_size, sequences of 256 tokens
SHAPES = {"16m": (4, 256, 4, 50304, 8), "11m": (6, 384, 6, 256, 12), "124m": (12, 768, 12, 50304, 2)}
LENGTH = 256


def bench(shape: str, repetitions: int, remat: str, dtype: str, peer: Peer | None) -> Iterator[str]:
    """Times steps, ours and the peer's in turns.

    Args:
        shape: of ``SHAPES``.
        repetitions: timed steps of each, after two of ours and one of the peer's for warm-up.
        remat: what the backward pass recomputes.
        dtype: of the matrix products.
        peer: PyTorch, or None.

    Yields:
        Lines of text.
    """
    layers, width, heads, vocab, sequences = SHAPES[shape]
    work = _Steps(shape, remat, dtype)
    ours, theirs = [], []
    for number in range(repetitions + 2):
        timing = work.step()
        if number < 2:
            continue
        ours.append(timing)
        if peer:
            theirs.append(
                peer.measure(
                    "train",
                    num_layers=layers,
                    d_model=width,
                    num_heads=heads,
                    vocab_size=vocab,
                    sequence_length=LENGTH,
                    sequences=sequences,
                )
            )
    kind = jax.devices()[0].device_kind
    tokens = sequences * LENGTH
    name = (
        f"train {shape}, {work.parameters:,} parameters, {sequences} x {LENGTH} tokens, {dtype}, remat {remat}, {kind}"
    )
    yield f"{name}: {speed(ours, tokens)}, MFU {100 * work.mfu(median(ours)):.0f} %"
    if peer:
        yield f"  {peer.version}, eager, fused AdamW: {speed(theirs, tokens)}"
        yield ratio(ours, theirs)


class _Steps:
    """A model in training on random tokens."""

    def __init__(self, shape: str, remat: str, dtype: str):
        layers, width, heads, vocab, sequences = SHAPES[shape]
        devices = jax.device_count()
        config = cfg.Config(
            model=cfg.Model(
                vocab_size=vocab,
                context_length=LENGTH,
                num_layers=layers,
                d_model=width,
                num_heads=heads,
                compute_dtype=dtype,
                remat=remat,
                scan_unroll=layers,
            ),
            train=cfg.Train(tokens=10**9, batch_tokens=sequences * LENGTH, microbatch_sequences=sequences),
            optimizer=cfg.Optimizer(warmup_tokens=0),
        )
        self._config = resolve(config, device_count=devices)
        self._mesh = make_mesh(self._config.mesh)
        with jax.set_mesh(self._mesh):
            self._state: Any = create_state(self._config, self._mesh)
            self._run = make_train_step(self._config, self._mesh, eot=0)
            tokens = np.random.default_rng(0).integers(0, vocab, (2, 1, sequences, LENGTH)).astype(np.int32)
            self._batch = jax.device_put(
                dict(zip(("inputs", "targets"), tokens, strict=True)), batch_sharding(self._mesh)
            )
        self.parameters = parameter_count(self._state["params"])
        self._peak = throughput.peak(jax.devices()).flops

    def step(self) -> Timing:
        with jax.set_mesh(self._mesh), Timing() as timing:
            self._state, metrics = self._run(self._state, self._batch, np.float32(3e-4), 1)
            float(metrics["loss"])
        return timing

    def mfu(self, seconds: float) -> float:
        work = flops.training_per_token(self._config.model, LENGTH) * self._config.train.batch_tokens
        return work / seconds / self._peak
