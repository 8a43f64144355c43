"""Compute-optimal size without a law of loss: isoFLOP minima, and the lower envelope of loss curves. Needs no JAX.

Approaches 2 and 1 of arXiv 2203.15556, section 3. Both end in power laws of compute: N* = k C^a, D* = k' C^b, and for
the frontier of loss L* = k'' C^c.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.interpolate import Akima1DInterpolator

from scaling.laws.points import Points, require_variety

_SAME_BUDGET = 1.1  # runs of one isoFLOP curve may differ by this factor in FLOPs
_SIZES = 4  # of one isoFLOP curve, at least
_BUDGETS = 3  # for a power law with an error, at least
_PER_INTERVAL = 25  # interpolated sizes between two runs
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
    """

    form: str
    num_points: int
    theta: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    optima: tuple[Mapping[str, float], ...]
    held_out: Mapping[str, Any]
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]
    draws: tuple[tuple[float, ...], ...]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))


NAMES = tuple(name for quantity in QUANTITIES for name in (f"log_k_{quantity}", f"{quantity}_exponent"))


def isoflop(points: Points, *, noise: float = 0.005, resamples: int = 1000, seed: int = 0) -> Frontier:
    """The size with the least loss at each budget, and power laws through these.

    Each budget's curve of log loss over log N is interpolated (Akima). Its minimum is the median over curves with
    the noise of another seed added, and weighs by the inverse variance over them (arXiv 2406.19146, appendix C).

    Args:
        points: several sizes at each of several budgets of FLOPs.
        noise: standard deviation of the loss between seeds, nats a token.
        resamples: of noise and of budgets, for the intervals.
        seed: of the resamples.

    Raises:
        ValueError: fewer than 3 budgets have a minimum inside their sizes.
    """
    if not (noise > 0 and resamples > 0):
        raise ValueError(f"--noise={noise} and --resamples={resamples} must be positive")
    require_variety(points, ["loss"], 2)
    rng = np.random.default_rng(seed)
    flops, params = points["flops"], points["params"]
    budgets, minima, spread, left_out = [], [], [], []
    for budget in isoflop_budgets(flops):
        curve = points.take(budget)
        found, reason = _minima(curve, noise, resamples, rng)
        center = float(np.exp(np.log(flops[budget]).mean()))
        if reason:
            left_out.append(f"budget {center:.3g} FLOPs: {reason}")
            continue
        inside = np.isfinite(found[:, 0])
        # No curve tells its minimum better than a third of the distance between its sizes.
        step = np.ptp(np.log(params[budget])) / (len(np.unique(params[budget])) - 1)
        budgets.append(center)
        minima.append(found)
        spread.append(max(float(np.std(found[inside, 0])), step / 3) / inside.mean())
    if len(budgets) < _BUDGETS:
        raise ValueError(
            f"only {len(budgets)} isoFLOP curves have their minimum inside the data, at least {_BUDGETS} are needed: "
            + "; ".join(left_out)
        )
    x, each, weights = np.log(budgets), np.stack(minima), 1 / np.square(spread)
    middle = np.nanmedian(each, axis=1)
    theta = _power_laws(x, middle, weights)
    counts = rng.multinomial(len(x), np.full(len(x), 1 / len(x)), size=resamples)
    draws = []
    for i, count in enumerate(counts):
        used = np.isfinite(each[:, i, 0]) & (count > 0)
        if used.sum() >= 2:
            draws.append(_power_laws(x[used], each[used, i], (weights * count)[used]))
    last = int(np.argmax(x))
    others = np.arange(len(x)) != last
    without = _power_laws(x[others], middle[others], weights[others])
    held_out = _compare(f"budget {budgets[last]:.3g} FLOPs", without, x[last], middle[last])
    return _frontier("isoflop", points, theta, np.array(draws), x, middle, held_out, left_out)


def isoflop_budgets(flops: np.ndarray) -> list[np.ndarray]:
    """Masks [n] of the isoFLOP curves, by growing budget."""
    order = np.argsort(flops)
    first, masks = 0.0, []
    for index in order:
        if flops[index] > first * _SAME_BUDGET:
            first = flops[index]
            masks.append(np.zeros(len(flops), bool))
        masks[-1][index] = True
    return masks


def _minima(curve: Points, noise: float, resamples: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """log N, log D, log loss at the minimum of each noisy curve [resamples, 3] (NaN: at an end); or a reason."""
    order = np.lexsort((curve["loss"], curve["params"]))
    params, first = np.unique(curve["params"][order], return_index=True)  # the best run of each size
    if len(params) < _SIZES:
        return np.empty(0), f"{len(params)} sizes are too few, at least {_SIZES} are needed"
    x, loss = np.log(params), curve["loss"][order][first]
    log_tokens = np.log(curve["tokens"][order][first])
    noisy = loss[:, None] + noise * rng.standard_normal((len(x), resamples))
    fine = np.linspace(x[0], x[-1], (len(x) - 1) * _PER_INTERVAL)
    curves = Akima1DInterpolator(x, np.log(np.maximum(noisy, 1e-9)))(fine)
    lowest = np.argmin(curves, axis=0)
    found = np.stack([fine[lowest], np.interp(fine[lowest], x, log_tokens), curves.min(axis=0)], axis=1)
    found[(lowest == 0) | (lowest == len(fine) - 1)] = np.nan
    if np.isfinite(found[:, 0]).mean() < 0.5:
        end, size = ("largest", params[-1]) if np.median(lowest) > len(fine) / 2 else ("smallest", params[0])
        return found, f"the minimum is not inside the data, the {end} size ({size:.3g}) is best"
    return found, ""


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
    if len(curves) < _BUDGETS:
        raise ValueError(
            f"{len(curves)} runs have several points, an envelope needs at least {_BUDGETS}; "
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
    if sizes < _BUDGETS:
        raise ValueError(
            f"the envelope of the curves touches {sizes} sizes between the smallest and the largest of a budget, "
            f"at least {_BUDGETS} are needed; train more sizes"
        )
    left_out = []
    if len(budgets) < len(x):
        part = 1 - len(budgets) / len(x)
        left_out.append(f"{part:.0%} of the budgets: the smallest or largest size trained with them is the best")
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(curves), np.full(len(curves), 1 / len(curves)), size=resamples)
    resampled = [frontier(count > 0) for count in counts]
    draws = [_power_laws(*found) for found in resampled if len(np.unique(found[1][:, 0])) > 1]
    below, held_out = budgets < budgets[-1] - np.log(_HELD_OUT), {}
    if len(np.unique(optima[below, 0])) > 1:
        name = f"budget {np.exp(budgets[-1]):.3g} FLOPs, from those {_HELD_OUT:g} times smaller and less"
        held_out = _compare(name, _power_laws(budgets[below], optima[below]), budgets[-1], optima[-1])
    theta = _power_laws(budgets, optima)
    shown = np.unique(np.linspace(0, len(budgets) - 1, 20).astype(int))
    return _frontier("envelope", points, theta, np.array(draws), budgets[shown], optima[shown], held_out, left_out)


def _power_laws(x: np.ndarray, optima: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Weighted least squares of each column of ``optima`` [n, 3] on x = log C; in the order of ``NAMES`` [6]."""
    weights = np.ones_like(x) if weights is None else weights / weights.sum()
    mean = np.average(x, weights=weights)
    centre = np.average(optima, axis=0, weights=weights)
    spread = np.sum(weights * (x - mean) ** 2)
    slope = (weights * (x - mean)) @ (optima - centre) / max(spread, 1e-300)
    return np.stack([centre - slope * mean, slope], axis=1).ravel()


def _compare(name: str, theta: np.ndarray, x: float, observed: np.ndarray) -> dict[str, Any]:
    predicted = theta[0::2] + theta[1::2] * x
    result: dict[str, Any] = {"name": name}
    for i, quantity in enumerate(QUANTITIES):
        result[quantity] = {
            "observed": float(np.exp(observed[i])),
            "predicted": float(np.exp(predicted[i])),
            "error_percent": float(100 * np.expm1(predicted[i] - observed[i])),
        }
    return result


def _frontier(
    form: str,
    points: Points,
    theta: np.ndarray,
    draws: np.ndarray,
    x: np.ndarray,
    optima: np.ndarray,
    held_out: dict[str, Any],
    left_out: list[str],
) -> Frontier:
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
