"""Figures of the joint law: L(N) and L(D), and isoFLOP curves."""

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from scaling.laws.isocurves import Curve
from scaling.laws.isocurves import isoflop_curves as budget_curves
from scaling.report.collect import Ladder
from scaling.report.style import INK, Colours, Drawing, around, canvas, log_axis

if TYPE_CHECKING:
    from scaling.laws.fit import Fit

_LINES = 6  # of the law, at most
_PALE = 0.28


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
                    axes.plot(x, fit.loss(**{quantity: x, other: value}), color=colours(value), lw=1.5, alpha=0.85)
                limit = fit.loss(**{quantity: x, other: np.inf})
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


def isoflop_curves(ladder: Ladder) -> Drawing | None:
    """Loss against N at each budget, as ``isoflop`` fits it, minima marked; None where no budget has several sizes."""
    points = ladder.points
    curves = [curve for curve in budget_curves(points).curves if len(curve.x) > 1]
    if not curves:
        return None
    colours = Colours([curve.flops for curve in curves])
    with canvas(width=9.5, height=5.4) as (figure, (axes,)):
        for curve in curves:
            _draw(axes, curve, colours(curve.flops))
        optima = np.exp([curve.minimum for curve in curves if not curve.reason])
        if len(optima):
            axes.plot(optima[:, 0], optima[:, 2], ":", color=INK, lw=1.1, zorder=5)
            axes.plot([], [], "*", ms=12, mfc="#999999", mec=INK, mew=0.9, label="minimum of a budget")
        if any(curve.reason for curve in curves):
            axes.plot([], [], "o-", color=INK, alpha=_PALE, ms=5.5, label="budget without a minimum inside its sizes")
        if any(curve.far.any() for curve in curves):
            axes.plot([], [], "o", ms=5, mfc="none", mec=INK, label="size too far from the minimum to be fitted")
        if any(len(curve.off) for curve in curves):
            axes.plot([], [], "x", ms=6, mew=1.5, color=INK, label="outlier, not fitted")
        log_axis(axes, "x", "count", *around(points["params"]), "parameters N")
        log_axis(axes, "y", "loss", *around(points["loss"], 0.1), "loss (nats a token)")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="best")
        colours.bar(figure, axes, "compute C (FLOPs)", "flops")
    return Drawing(
        "isoflop",
        f"Final loss against size at {len(curves)} budgets of FLOPs. Lines are the parabolas that are fitted near the "
        "minimum, stars their minima. A pale budget has none between its smallest and its largest size, and gives the "
        "fit nothing.",
        figure,
    )


def _draw(axes: Axes, curve: Curve, colour: Any) -> None:
    """The line of a budget over the sizes that it goes by, all sizes, outliers and the minimum."""
    style: dict[str, Any] = {"color": colour, "alpha": _PALE if curve.reason else 1.0}
    ends = curve.x[curve.fitted][[0, -1]]
    x = np.linspace(ends[0], ends[1], 200) if len(curve.x) > 3 else curve.x
    axes.plot(np.exp(x), curve.at(x), lw=1.6, **style)
    fitted, far = curve.fitted, curve.far
    axes.plot(np.exp(curve.x[fitted]), curve.loss[fitted], "o", ms=5.5, mec="white", mew=0.5, **style)
    axes.plot(np.exp(curve.x[far]), curve.loss[far], "o", ms=4.5, mfc="none", mec=colour, alpha=style["alpha"])
    axes.plot(np.exp(curve.off[:, 0]), curve.off[:, 1], "x", ms=6, mew=1.5, **style)
    if not curve.reason:
        where = np.exp(curve.minimum)
        axes.plot(where[0], where[2], "*", zorder=6, ms=14, mfc=colour, mec=INK, mew=0.9)
