"""Compute-optimal size by isoFLOP minima, approach 2 of arXiv 2203.15556. Needs no JAX."""

import dataclasses

import numpy as np

from scaling.laws.frontier import BUDGETS, Frontier, compare, frontier_of_optima, power_laws
from scaling.laws.isocurves import NOISY, SAME_SIZE, isoflop_curves, to_json
from scaling.laws.points import Points, require_variety


def isoflop(
    points: Points,
    *,
    curve: str = "parabola",
    same_size: float = SAME_SIZE,
    noise: float | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Frontier:
    """The size with the least loss at each budget, and power laws through these.

    A budget weighs by the inverse variance of its minimum over curves with the noise of other seeds (arXiv
    2406.19146, appendix C).

    Args:
        points: several sizes at each of several budgets of FLOPs.
        curve: parabola or akima; this, ``same_size`` and ``noise`` as of ``isoflop_curves``.
        same_size: sizes that differ by no more than this part are one.
        noise: standard deviation of the loss between seeds, nats a token; None = as the points tell it.
        resamples: of noise and of budgets, for the intervals.
        seed: of the noise and the resamples.

    Raises:
        ValueError: fewer than 3 budgets have a minimum inside their sizes, or an option that cannot be.
    """
    require_variety(points, ["loss"], 2)
    found = isoflop_curves(points, curve=curve, same_size=same_size, noise=noise, seed=seed)
    curves = [each for each in found.curves if not each.reason]
    left_out = [f"{each.name}: {each.reason}" for each in found.curves if each.reason]
    if len(curves) < BUDGETS:
        raise ValueError(
            f"only {len(curves)} isoFLOP curves have their minimum inside the data, at least {BUDGETS} are needed: "
            + "; ".join(left_out)
        )
    x = np.log([each.flops for each in curves])
    optima = np.stack([each.minimum for each in curves])
    noisy = np.stack([each.noisy for each in curves])  # [budgets, NOISY, 3]
    # No curve tells its minimum better than a third of the distance between its sizes.
    steps = np.array([np.ptp(each.x[each.fitted]) / (each.fitted.sum() - 1) for each in curves])
    spread = np.maximum(np.nanstd(noisy[..., 0], axis=1), steps / 3) / [each.inside for each in curves]
    weights = 1 / np.square(spread)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(x), np.full(len(x), 1 / len(x)), size=resamples)
    draws = []
    for i, count in enumerate(counts):
        each = noisy[:, i % NOISY]
        used = np.isfinite(each[:, 0]) & (count > 0)
        if used.sum() >= 2:
            draws.append(power_laws(x[used], each[used], (weights * count)[used]))
    last = len(x) - 1
    held_out = compare(curves[-1].name, power_laws(x[:last], optima[:last], weights[:last]), x[last], optima[last])
    laws = power_laws(x, optima, weights)
    fit = frontier_of_optima("isoflop", points, laws, np.array(draws), x, optima, held_out, left_out)
    within = [(each.loss[each.fitted].min(), each.loss[each.fitted].max()) for each in curves]
    return dataclasses.replace(
        fit,
        # Their logarithms are within these losses; this undoes the rounding of an exponential.
        optima=tuple(o | {"loss": float(np.clip(o["loss"], *w))} for o, w in zip(fit.optima, within, strict=True)),
        how={"curve": curve, "same_size": same_size, "noise": found.noise, "noise_source": found.source},
        curves=tuple(to_json(each) for each in found.curves),
        outliers=tuple(sentence for each in found.curves for sentence in each.outliers),
    )


def made_of(fit: Frontier) -> list[str]:
    """What was fitted to the runs of each budget, a line each: curve, sizes, noise."""
    kinds = {"parabola": "parabolas in log N near the minimum", "akima": "Akima's interpolation through all sizes"}
    runs = [size["runs"] for curve in fit.curves for size in curve["sizes"]]
    return [
        f"curves: {kinds[fit.how['curve']]} (--curve={fit.how['curve']})",
        f"sizes: equal within {fit.how['same_size']:.2g} of the size (--same_size), "
        f"{sum(n > 1 for n in runs)} of {len(runs)} sizes are means of several runs",
        f"noise: {fit.how['noise']:.4g} nats, {fit.how['noise_source']}",
    ]
