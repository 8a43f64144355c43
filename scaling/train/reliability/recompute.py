"""Faulty hardware: now and then a step is computed twice from the same state and batch, and must give the same bits."""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec as P

from scaling.train.state import TrainState

_DETERMINISTIC = "xla_gpu_deterministic_ops"
TrainStep = Callable[..., tuple[TrainState, dict[str, jax.Array]]]


class Faulty(Exception):
    """A step computed twice gave two results; the message names step and leaves."""


@jax.jit
def _digests(tree: Any) -> jax.Array:
    """Sum of the bits of each leaf, uint32 [leaves]; one flipped bit changes it."""

    def digest(leaf: jax.Array) -> jax.Array:
        unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
        return jnp.sum(jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32), dtype=jnp.uint32)

    sums = jnp.stack([digest(leaf) for leaf in jax.tree.leaves(tree)])
    return jax.lax.with_sharding_constraint(sums, P())  # each device has those of its own copies


@jax.jit
def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def checked(step_function: TrainStep, every: int, first_step: int) -> TrainStep:
    """The same train step, computed twice at multiples of ``every``; that needs memory for a second state.

    Args:
        step_function: ``step(state, batch, ...) -> (state, metrics)``, which may take its state over.
        every: interval in steps; 0 = never.
        first_step: steps done before the first call.

    Returns:
        The step itself, or a function that raises ``Faulty`` in all processes if any device has found two results.

    Raises:
        ValueError: on GPUs, if XLA was not told to give the same bits each time.
    """
    if not every:
        return step_function
    if jax.default_backend() == "gpu" and _DETERMINISTIC not in os.environ.get("XLA_FLAGS", ""):
        raise ValueError(
            f"config.guard.recompute_every_steps={every} on GPUs needs XLA_FLAGS=--{_DETERMINISTIC}=true in the "
            "environment: without it, sums in another order make two results of a sound device"
        )
    done = first_step

    def step(state: TrainState, *rest: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        nonlocal done
        done += 1
        if done % every:
            return step_function(state, *rest)
        first, metrics = step_function(_copy(state), *rest)
        before = _per_device({"state": first, "metrics": metrics})
        del first
        state, metrics = step_function(state, *rest)
        tree = {"state": state, "metrics": metrics}
        after = _per_device(tree)
        names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree.leaves_with_path(tree)]
        # Sums over a leaf are those of its replica: devices may differ in them, and processes in what they see.
        differ = (before != after).any(axis=0) | (after != after[:1]).any(axis=0)
        if jax.process_count() > 1:
            differ = np.asarray(multihost_utils.process_allgather(differ)).any(axis=0)
        if differ.any():
            wrong = [name for name, bad in zip(names, differ, strict=True) if bad]
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise Faulty(
                f"step {done} was computed twice and gave two results, in {', '.join(wrong[:5])}{more}: a device or "
                "its memory is faulty; nothing of it was saved"
            )
        return state, metrics

    return step


def _per_device(tree: Any) -> np.ndarray:
    """Digests as each device of this process has them, uint32 [devices, leaves]."""
    return np.stack([np.asarray(shard.data) for shard in _digests(tree).addressable_shards])
