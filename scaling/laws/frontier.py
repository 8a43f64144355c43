"""Compute-optimal size without a law of loss: power laws of compute, and the lower envelope of loss curves. No JAX.

Approaches 1 and 2 of arXiv 2203.15556, section 3, end in N* = k C^a, D* = k' C^b, and for the frontier of loss
L* = k'' C^c. Approach 1 is here, approach 2 in ``isoflop``.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from scaling.laws.points import Points, require_variety

BUDGETS = 3  # for a power law with an error, at least
_ENVELOPE_BUDGETS = 1500  # as in arXiv 2203.15556, appendix A
_HELD_OUT = 3.0  # the largest budget of an envelope is predicted from those smaller by this factor
QUANTITIES = ("params", "tokens", "loss")


@dataclasses.dataclass(frozen=True)
class Frontier:
    """Power laws of the compute-optimal run.

    Attributes:
        theta: ``log_k_params``, ``params_exponent`` and so on for tokens and loss.
        intervals: 95 % percentile interval of each; empty without resamples.
        optima: budgets with their optimum: flops, params, tokens, loss.
        held_out: the optimum of the largest budget, predicted from smaller ones.
        draws: ``theta`` of each resample.
        how: of isoFLOP minima: kind of curve, ``same_size``, noise in nats and where it comes from.
        curves: of isoFLOP minima: flops of each budget, its sizes (params, tokens, mean loss, number of runs, and
            whether it is fitted, far from the minimum or an outlier), and the reason where it has no minimum.
        outliers: of isoFLOP minima: sizes that are not fitted, though near the minimum.
    """

    form: str
    num_points: int
    theta: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    optima: tuple[dict[str, float], ...]
    held_out: Mapping[str, Any]
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]
    draws: tuple[tuple[float, ...], ...]
    how: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    curves: tuple[Mapping[str, Any], ...] = ()
    outliers: tuple[str, ...] = ()

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))


NAMES = tuple(name for quantity in QUANTITIES for name in (f"log_k_{quantity}", f"{quantity}_exponent"))


def envelope(points: Points, *, resamples: int = 1000, seed: int = 0) -> Frontier:
    """The run with the least loss at each budget, along all loss curves, and power laws through these.

    Args:
        points: several points along each of several runs; ``points.runs`` tells the runs apart.
        resamples: of runs, for the intervals.
        seed: of the resamples.

    Raises:
        ValueError: runs of one point each, or fewer than 3 sizes on the envelope.
    """
    require_variety(points, ["loss"], 2)
    runs = points.groups
    curves = [np.flatnonzero(runs == run)[np.argsort(points["flops"][runs == run])] for run in range(runs.max() + 1)]
    curves = [index for index in curves if len(index) > 1]
    if len(curves) < BUDGETS:
        raise ValueError(
            f"{len(curves)} runs have several points, an envelope needs at least {BUDGETS}; "
            "name the column that tells the runs of a table apart with --run=COL"
        )
    logs = {quantity: np.log(points[quantity]) for quantity in ("flops", *QUANTITIES)}
    ends = np.sort([[logs["flops"][c[0]], logs["flops"][c[-1]]] for c in curves], axis=0)
    x = np.linspace(ends[1, 0], ends[-1, 1], _ENVELOPE_BUDGETS)  # from where two runs can be compared
    on_curve = np.stack(
        [
            [np.interp(x, logs["flops"][c], logs[quantity][c], left=np.nan, right=np.nan) for c in curves]
            for quantity in QUANTITIES
        ],
        axis=-1,
    )  # [curves, budgets, quantities]

    def frontier(kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        there = kept[:, None] & np.isfinite(on_curve[..., 2])
        best = np.argmin(np.where(there, on_curve[..., 2], np.inf), axis=0)
        optima = on_curve[best, np.arange(len(x))]
        sizes = np.where(there, on_curve[..., 0], np.nan)
        # As of an isoFLOP curve, the optimum must be inside the sizes that were trained at that budget.
        inside = (np.fmin.reduce(sizes) < optima[:, 0]) & (optima[:, 0] < np.fmax.reduce(sizes))
        return x[inside], optima[inside]

    budgets, optima = frontier(np.ones(len(curves), bool))
    sizes = len(np.unique(optima[:, 0]))
    if sizes < BUDGETS:
        raise ValueError(
            f"the envelope of the curves touches {sizes} sizes between the smallest and the largest of a budget, "
            f"at least {BUDGETS} are needed; train more sizes"
        )
    left_out = []
    if len(budgets) < len(x):
        part = 1 - len(budgets) / len(x)
        left_out.append(f"{part:.0%} of the budgets: the smallest or largest size trained with them is the best")
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(curves), np.full(len(curves), 1 / len(curves)), size=resamples)
    resampled = [frontier(count > 0) for count in counts]
    draws = [power_laws(*found) for found in resampled if len(np.unique(found[1][:, 0])) > 1]
    below, held_out = budgets < budgets[-1] - np.log(_HELD_OUT), {}
    if len(np.unique(optima[below, 0])) > 1:
        name = f"budget {np.exp(budgets[-1]):.3g} FLOPs, from those {_HELD_OUT:g} times smaller and less"
        held_out = compare(name, power_laws(budgets[below], optima[below]), budgets[-1], optima[-1])
    theta = power_laws(budgets, optima)
    shown = np.unique(np.linspace(0, len(budgets) - 1, 20).astype(int))
    where = budgets[shown], optima[shown]
    return frontier_of_optima("envelope", points, theta, np.array(draws), *where, held_out, left_out)


def power_laws(x: np.ndarray, optima: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Weighted least squares of each column of ``optima`` [n, 3] on x = log C; in the order of ``NAMES`` [6]."""
    weights = np.ones_like(x) if weights is None else weights / weights.sum()
    mean = np.average(x, weights=weights)
    centre = np.average(optima, axis=0, weights=weights)
    spread = np.sum(weights * (x - mean) ** 2)
    slope = (weights * (x - mean)) @ (optima - centre) / max(spread, 1e-300)
    return np.stack([centre - slope * mean, slope], axis=1).ravel()


def compare(name: str, theta: np.ndarray, x: float, observed: np.ndarray) -> dict[str, Any]:
    """``theta`` [6] at ``x`` = log C beside the ``observed`` log N*, log D*, log L* [3], as ``Frontier.held_out``."""
    predicted = theta[0::2] + theta[1::2] * x
    result: dict[str, Any] = {"name": name}
    for i, quantity in enumerate(QUANTITIES):
        result[quantity] = {
            "observed": float(np.exp(observed[i])),
            "predicted": float(np.exp(predicted[i])),
            "error_percent": float(100 * np.expm1(predicted[i] - observed[i])),
        }
    return result


def frontier_of_optima(
    form: str,
    points: Points,
    theta: np.ndarray,
    draws: np.ndarray,
    x: np.ndarray,
    optima: np.ndarray,
    held_out: dict[str, Any],
    left_out: list[str],
) -> Frontier:
    """The fit of ``theta`` [6], its resamples ``draws`` [resamples, 6], and optima [n, 3] at ``x`` = log C [n]."""
    intervals = np.percentile(draws, [2.5, 97.5], axis=0).T.tolist() if len(draws) else []
    warnings = [] if len(x) >= 5 else [f"{len(x)} budgets are few for an interval"]
    rows = np.exp(np.column_stack([x, optima]))
    return Frontier(
        form=form,
        num_points=len(points),
        theta=dict(zip(NAMES, theta.tolist(), strict=True)),
        intervals={name: (low, high) for name, (low, high) in zip(NAMES, intervals, strict=False)},
        optima=tuple(dict(zip(("flops", *QUANTITIES), row.tolist(), strict=True)) for row in rows),
        held_out=held_out,
        left_out=(*points.left_out, *left_out),
        warnings=tuple(warnings),
        draws=tuple(map(tuple, draws.tolist())),
    )
