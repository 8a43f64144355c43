"""Sums of Huber terms minimised from many starts, or for many resamples, at once: float64 on the CPU.

The objective of arXiv 2203.15556, section 3.3: sum over runs of Huber_delta(predicted - observed log loss). The SUM,
not the mean: a mean over hundreds of runs is so small that the usual tolerances stop far from the minimum.

Two curvatures guide the steps. That of the quadratic which touches the Huber sum here and lies above it elsewhere
(iteratively reweighted least squares) is positive and safe, and finds the basin from far away: with delta far below
the residuals the true curvature is that of a few runs only, and Newton's steps from far stop in poor basins. Near
the minimum the true curvature converges where reweighting crawls. So all starts descend by the first, and the best
of them are polished by the second.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_DESCENT_STEPS = 80
_POLISH_STEPS = 120
_TOLERANCE = 1e-13  # relative decrease of the objective that the quadratic still promises
_MAX_DAMPING = 1e12  # no step is short enough: the objective is at its rounding error
_STEPS_DONE = -2  # index into the state of the loop
_CHUNK = 16  # problems solved together: few, since all wait for the slowest; one shape, so one compilation


class Minima(NamedTuple):
    """Where each start ended, float64: ``theta`` [S, P] and ``objective`` [S] (infinite where it is no number)."""

    theta: np.ndarray
    objective: np.ndarray


def huber(residual: Any, delta: float) -> Any:
    """r^2/2 inside delta, delta (|r| - delta/2) outside."""
    size = jnp.abs(residual)
    return jnp.where(size <= delta, residual**2 / 2, delta * (size - delta / 2))


def minimise(
    law: Callable[[Any, Any], Any],
    starts: np.ndarray,
    sizes: dict[str, np.ndarray],
    observed: np.ndarray,
    *,
    delta: float,
    weights: np.ndarray | None = None,
    free: np.ndarray | None = None,
    polished: int | None = None,
) -> Minima:
    """Minimises sum_i w_i Huber_delta(law(theta, sizes)_i - observed_i) from every start.

    Args:
        law: (theta [P], sizes) -> [n], differentiable; compiled once for each function and shape.
        starts: [S, P].
        sizes: the logarithms that ``law`` reads, each [n].
        observed: [n], log loss or whatever ``law`` predicts.
        delta: where the penalty turns from quadratic to linear, in the units of ``observed``.
        weights: [S, n] or [n]; None = all 1. A bootstrap resample is its counts, a held-out run is a zero.
        free: [S, P]; parameters with 0 stay where they start; None = all are free.
        polished: this many of the best starts are polished; None = all (when each is a problem of its own).
    """
    shape = (len(starts), len(observed))
    weights = np.broadcast_to(1.0 if weights is None else weights, shape)
    free = np.ones_like(starts) if free is None else free
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):

        def descend(newton: bool, rows: Any, theta: np.ndarray) -> Minima:
            problems = (theta, weights[rows], free[rows])
            data = jax.tree.map(lambda value: jnp.asarray(value, jnp.float64), (sizes, observed, delta))
            done = []
            for first in range(0, len(theta), _CHUNK):
                chunk = [_padded(array[first : first + _CHUNK]) for array in problems]
                done.append(_descend(law, newton, *chunk, *data))
            return Minima(*(np.concatenate(parts)[: len(theta)] for parts in zip(*done, strict=True)))

        everything = slice(None)
        minima = descend(False, everything, starts)
        best = everything if polished is None else np.argsort(minima.objective)[:polished]
        minima.theta[best], minima.objective[best] = descend(True, best, minima.theta[best])
    return minima


def _padded(array: np.ndarray) -> Any:
    padding = ((0, _CHUNK - len(array)), (0, 0))
    return jnp.asarray(np.pad(array, padding, mode="edge"), jnp.float64)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _descend(
    law: Any, newton: bool, starts: Any, weights: Any, free: Any, sizes: Any, observed: Any, delta: Any
) -> Any:
    def residual(theta: Any) -> Any:
        return law(theta, sizes) - observed

    def one(theta: Any, weight: Any, free: Any) -> Any:
        def objective(theta: Any) -> Any:
            return jnp.sum(weight * huber(residual(theta), delta))

        def step(state: Any) -> Any:
            theta, value, damping, steps, _ = state
            error, jacobian = residual(theta), jax.jacfwd(residual)(theta) * free
            scale = weight / jnp.maximum(1.0, jnp.abs(error) / delta)
            gradient = jacobian.T @ (scale * error)
            reweighted = (jacobian.T * scale) @ jacobian
            diagonal = jnp.diag(reweighted)  # a term that has underflowed has no curvature at all
            reweighted += jnp.diag(1e-6 * diagonal + 1e-12 * jnp.max(diagonal) + 1e-30 + (1 - free))
            # Damping shortens the step (Levenberg, Marquardt) and turns Newton's into the reweighted one.
            curvature = jax.hessian(objective)(theta) * jnp.outer(free, free) if newton else reweighted
            trial = theta - jnp.linalg.solve(curvature + damping * reweighted, gradient)
            trial_value = objective(trial)
            better = trial_value < value  # False for NaN
            promise = gradient @ jnp.linalg.solve(reweighted, gradient)
            return (
                jnp.where(better, trial, theta),
                jnp.where(better, trial_value, value),
                jnp.maximum(jnp.where(better, damping / 5, damping * 4), 1e-12),
                steps + 1,
                (promise <= _TOLERANCE * value) | (damping > _MAX_DAMPING),
            )

        def unfinished(state: Any) -> Any:
            return ~state[-1] & (state[_STEPS_DONE] < (_POLISH_STEPS if newton else _DESCENT_STEPS))

        theta, value, *_ = jax.lax.while_loop(unfinished, step, (theta, objective(theta), 1.0, 0, False))
        return theta, jnp.where(jnp.isfinite(value), value, jnp.inf)

    return jax.vmap(one)(starts, weights, free)
