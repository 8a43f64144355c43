"""Bad steps, judged on the device inside the compiled step: what makes one, and what is remembered of it."""

import functools
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

WINDOW = 100  # good steps that the running means remember, and before which there are no spikes


class GuardState(TypedDict):
    """Part of the training state: scalars, on the device and in ``meta.json``, so that resuming judges alike."""

    loss: jax.Array  # float32, running mean over good steps
    grad_norm: jax.Array  # float32, running mean over good steps
    good: jax.Array  # int32, good steps behind the means
    skipped: jax.Array  # int32, bad steps on the way to this state
    in_a_row: jax.Array  # int32, bad steps since the last good one


_TYPES = dict(loss=np.float32, grad_norm=np.float32, good=np.int32, skipped=np.int32, in_a_row=np.int32)


def create() -> GuardState:
    """That of a run's begin."""
    return GuardState(**{name: jnp.zeros((), dtype) for name, dtype in _TYPES.items()})  # type: ignore[typeddict-item]


def judge(state: GuardState, loss: jax.Array, grad_norm: jax.Array, spike_factor: float) -> tuple[Any, GuardState]:
    """Whether a step is good, bool [], and what is remembered after it.

    Bad is a loss or gradient norm that is not finite, or (``spike_factor`` > 0, and after ``WINDOW`` good steps) above
    that many times the running mean of good steps. The mean is of all good steps at first, and then exponential.
    """
    good = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    if spike_factor:
        spike = (loss > spike_factor * state["loss"]) | (grad_norm > spike_factor * state["grad_norm"])
        good &= ~(spike & (state["good"] >= WINDOW))
    weight = 1 / (jnp.minimum(state["good"], WINDOW - 1) + 1).astype(jnp.float32)

    def mean(old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(good, old + weight * (new - old), old)

    bad = (~good).astype(jnp.int32)
    return good, GuardState(
        loss=mean(state["loss"], loss),
        grad_norm=mean(state["grad_norm"], grad_norm),
        good=state["good"] + 1 - bad,
        skipped=state["skipped"] + bad,
        in_a_row=(state["in_a_row"] + 1) * bad,
    )


def keep_if(good: jax.Array, new: Any, old: Any) -> Any:
    """``new`` after a good step, else ``old``, bit for bit; element by element, so it is part of the update's loop."""
    return jax.tree.map(functools.partial(jnp.where, good), new, old)


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def is_finite(state: Any) -> bool:
    """Whether all weights and moments of a training state are finite numbers; the same answer in every process."""
    return bool(_all_finite([state[name] for name in ("params", "optimizer", "beside") if name in state]))
