"""Figures of the joint law: L(N) and L(D), and isoFLOP curves."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.interpolate import Akima1DInterpolator

from scaling.laws.frontier import isoflop_budgets
from scaling.laws.points import Points
from scaling.laws.report.collect import Ladder
from scaling.laws.report.style import INK, Colours, Drawing, around, canvas, log_axis

if TYPE_CHECKING:
    from scaling.laws.fit import Fit
    from scaling.laws.frontier import Frontier
    from scaling.laws.report.fits import Fits

_LINES = 6  # of the law, at most
_AKIMA = 4  # runs of a budget, at least, for a curve; fewer are joined by straight lines


def loss_against_sizes(ladder: Ladder, fit: "Fit | str") -> Drawing:
    """L(N) coloured by D and L(D) coloured by N, with lines of the joint law and its limits."""
    points = ladder.points
    labels = {"params": "parameters N", "tokens": "training tokens D"}
    with canvas(columns=2, width=10.5, height=4.9) as (figure, panels):
        for axes, (quantity, other) in zip(panels, (("params", "tokens"), ("tokens", "params")), strict=True):
            colours = Colours(points[other])
            style: dict[str, Any] = {"edgecolors": "white", "linewidths": 0.6, "zorder": 4}
            axes.scatter(points[quantity], points["loss"], s=34, c=colours(points[other]), **style)
            low, high = around(points[quantity], 0.08)
            lowest = points["loss"].min()
            if not isinstance(fit, str):
                x = np.geomspace(low, high, 200)
                for value in _chosen(points[other]):
                    axes.plot(x, _law(fit, quantity, x, value), color=colours(value), lw=1.5, alpha=0.85)
                limit = _law(fit, quantity, x, np.inf)
                letter = "D" if other == "tokens" else "N"
                axes.plot(x, limit, "--", color=INK, lw=1.3, label=f"limit of the law, ${letter} \\to \\infty$")
                irreducible = float(np.exp(fit.theta["e"]))
                lowest = min(lowest, float(limit.min()))
                if irreducible > lowest * 0.6:
                    lowest = min(lowest, irreducible)
                    axes.axhline(irreducible, color=INK, ls=":", lw=1, label=f"irreducible loss E = {irreducible:.3g}")
                axes.legend(loc="best")
            log_axis(axes, "x", "count", low, high, labels[quantity])
            bottom, top = around([lowest, points["loss"].max()], 0.12)
            log_axis(axes, "y", "loss", bottom, top, "loss (nats a token)")
            colours.bar(figure, axes, labels[other])
    caption = "Final loss against size, coloured by tokens, and against tokens, coloured by size."
    if not isinstance(fit, str):
        caption += " Lines are the joint law at the values of the other quantity that their colour gives."
    return Drawing("loss_sizes", caption, figure)


def _chosen(values: np.ndarray) -> np.ndarray:
    """The distinct values, or a few spread evenly over their logarithms."""
    distinct = np.unique(values)
    return distinct if len(distinct) <= _LINES else np.geomspace(distinct[0], distinct[-1], _LINES)


def _law(fit: "Fit", quantity: str, values: np.ndarray, other: float) -> np.ndarray:
    a, b, e, alpha, beta = fit.theta.values()
    params, tokens = (values, other) if quantity == "params" else (other, values)
    return np.exp(a) * np.power(params, -alpha) + np.exp(b) * np.power(tokens, -beta) + np.exp(e)


@dataclasses.dataclass(frozen=True)
class _Budget:
    """The runs of one budget, and the minimum that the fit found on their curve (None: none inside)."""

    flops: float
    points: Points
    optimum: Mapping[str, float] | None
    inside: bool


def isoflop_curves(ladder: Ladder, fits: "Fits") -> Drawing | None:
    """Loss against N at each budget, minima marked; None where no budget has several sizes."""
    points, budgets = ladder.points, _budgets(ladder.points, fits.by_count[ladder.count].isoflop)
    if not budgets:
        return None
    colours = Colours(points["flops"])
    with canvas(width=9.5, height=5.4) as (figure, (axes,)):
        for budget in budgets:
            style: dict[str, Any] = {"color": colours(budget.flops), "alpha": 1.0 if budget.inside else 0.28}
            axes.plot(*_interpolated(budget.points), lw=1.6, **style)
            axes.plot(budget.points["params"], budget.points["loss"], "o", ms=5.5, mec="white", mew=0.5, **style)
            if budget.optimum:
                where = budget.optimum["params"], budget.optimum["loss"]
                axes.plot(*where, "*", zorder=6, ms=14, mfc=style["color"], mec=INK, mew=0.9)
        optima = [budget.optimum for budget in budgets if budget.optimum]
        if optima:
            axes.plot([o["params"] for o in optima], [o["loss"] for o in optima], ":", color=INK, lw=1.1, zorder=5)
            axes.plot([], [], "*", ms=12, mfc="#999999", mec=INK, mew=0.9, label="minimum of a budget")
        if not all(budget.inside for budget in budgets):
            axes.plot([], [], "o-", color=INK, alpha=0.28, ms=5.5, label="budget without a minimum inside its sizes")
        log_axis(axes, "x", "count", *around(points["params"]), "parameters N")
        log_axis(axes, "y", "loss", *around(points["loss"], 0.1), "loss (nats a token)")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="best")
        colours.bar(figure, axes, "compute C (FLOPs)", "flops")
    return Drawing(
        "isoflop",
        f"Final loss against size at {len(budgets)} budgets of FLOPs. Stars are the minima. A pale budget has none "
        "between its smallest and its largest size, and gives the fit nothing.",
        figure,
    )


def _budgets(points: Points, fit: "Frontier | str") -> list[_Budget]:
    """Budgets with several sizes, by growing FLOPs."""
    budgets = []
    for mask in isoflop_budgets(points["flops"]):
        curve = points.take(mask)
        order = np.lexsort((curve["loss"], curve["params"]))
        params, first = np.unique(curve["params"][order], return_index=True)
        if len(params) < 2:
            continue
        flops = float(np.exp(np.log(curve["flops"]).mean()))
        best = curve.take(np.isin(np.arange(len(curve)), order[first]))
        if isinstance(fit, str):
            lowest = best["params"][np.argmin(best["loss"])]
            budgets.append(_Budget(flops, best, None, bool(params[0] < lowest < params[-1])))
            continue
        optimum = next((o for o in fit.optima if abs(o["flops"] / flops - 1) < 1e-6), None)
        budgets.append(_Budget(flops, best, optimum, optimum is not None))
    return budgets


def _interpolated(curve: Points) -> tuple[np.ndarray, np.ndarray]:
    """Loss along N as the fit interpolates it, or straight lines where the runs are too few for that."""
    order = np.argsort(curve["params"])
    params, loss = curve["params"][order], curve["loss"][order]
    if len(params) < _AKIMA:
        return params, loss
    x = np.geomspace(params[0], params[-1], 200)
    log_x = np.clip(np.log(x), np.log(params[0]), np.log(params[-1]))
    return x, np.exp(Akima1DInterpolator(np.log(params), np.log(loss))(log_x))
