"""Benchmarks of the training step's surroundings: how long the host takes to dispatch one."""

import statistics
import time

import jax
import numpy as np

from scaling.config import schema as cfg
from scaling.data.batch import of_sequences
from scaling.objectives.pretraining import pretraining
from scaling.parallel.mesh import make_mesh
from scaling.parallel.sharding import batch_sharding
from scaling.train.state import create_state
from scaling.train.step import make_train_step

PATTERN = ("dense", "banded")


def dispatch(num_layers: int = 48, steps: int = 50) -> str:
    """Host time to hand one training step of a deep, narrow model to the device.

    The device is idle when each call is made, and only the call is timed, not the computation: that is what
    a step costs the host, whatever the width. Layers are stacked, so depth should not matter.

    Args:
        num_layers: depth, a multiple of the entries of ``PATTERN``.
        steps: calls timed, at least two, after two for warm-up.

    Returns:
        One line with median and quartiles in milliseconds.
    """
    config = cfg.Config(
        model=cfg.Model(
            vocab_size=256,
            context_length=32,
            num_layers=num_layers,
            d_model=32,
            num_heads=2,
            d_head=16,
            d_ff=128,
            attention_pattern=PATTERN,
            band_width=8,
        ),
        compute=cfg.Compute(dtype="float32"),
        train=cfg.Train(
            tokens=32, sequence_length=32, batch_tokens=32 * jax.device_count(), microbatch_sequences=jax.device_count()
        ),
    )
    mesh = make_mesh(cfg.Mesh())
    tokens = np.zeros((1, jax.device_count(), 33), np.int32)
    times = []
    with jax.set_mesh(mesh):
        state, step = create_state(config, mesh), make_train_step(config, mesh, pretraining(config))
        batch = jax.device_put(of_sequences(tokens), batch_sharding(mesh))
        for i in range(steps + 2):
            jax.block_until_ready(state)
            start = time.perf_counter()
            state, _ = step(state, batch, 1e-3, 1)
            if i >= 2:
                times.append(1e3 * (time.perf_counter() - start))
    low, median, high = statistics.quantiles(times, n=4)
    leaves = len(jax.tree.leaves(state))
    return (
        f"dispatch of one training step, {num_layers} layers, {leaves} arrays, {jax.device_count()} "
        f"{jax.devices()[0].device_kind}: median {median:.3f} ms (quartiles {low:.3f} to {high:.3f}, {steps} steps)"
    )
