"""Figures against compute: loss curves with their frontier, optimal size and length, residuals."""

from typing import TYPE_CHECKING, Any

import numpy as np

from scaling.report.collect import Ladder
from scaling.report.optimum import Optimum, interval
from scaling.report.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PALE,
    VERMILION,
    Colours,
    Drawing,
    around,
    canvas,
    log_axis,
    plain,
)

if TYPE_CHECKING:
    from scaling.laws.fit import Fit
    from scaling.laws.frontier import Frontier
    from scaling.report.fits import Fits, HeldOut

FLOPS = "compute C (FLOPs)"
_HOFFMANN, _KAPLAN = (0.50, 0.50), (0.73, 0.27)  # N*, D* ~ C^..: arXiv 2203.15556, table 2; 2001.08361, section 6.1
_LABELLED = 6  # outliers named in a figure; the page names all


def loss_against_compute(ladder: Ladder, fits: "Fits") -> Drawing:
    """Every run's curve, the frontier and L(C), as in figure 3.1 of arXiv 2005.14165."""
    points, frontier = ladder.points, fits.frontier
    colours = Colours([entry.params for entry in ladder.entries])
    with canvas(height=5.6) as (figure, (axes,)):
        for curve in ladder.curves:
            finished = curve.state == "finished"
            colour = colours(curve.params) if curve.state != "diverged" else PALE
            axes.plot(curve.flops, curve.loss, ls="-" if finished else (0, (3, 2)), color=colour, lw=1.0, alpha=0.75)
            if curve.state == "diverged":
                axes.plot(curve.flops[-1], curve.loss[-1], "x", color=VERMILION, ms=8, mew=2, zorder=6)
        axes.scatter(
            points["flops"],
            points["loss"],
            s=26,
            c=colours(points["params"]),
            edgecolors="white",
            linewidths=0.6,
            zorder=4,
            label=f"end of a run, {ladder.loss} loss",
        )
        axes.plot(
            frontier["flops"],
            frontier["loss"],
            "o",
            mfc="none",
            mec=INK,
            mew=1.3,
            ms=8,
            zorder=5,
            label="best of its budget",
        )
        low = points["flops"].min() / 10
        high = 3 * max(points["flops"].max(), *(curve.flops[-1] for curve in ladder.curves), low)
        bottom = points["loss"].min()
        if not isinstance(fits.law, str):
            x = np.geomspace(frontier["flops"].min() / 1.5, high, 200)
            middle, below, above = interval(_power(fits.law, x))
            axes.fill_between(x, below, above, color=VERMILION, alpha=0.16, lw=0, zorder=2)
            axes.plot(x, middle, "--", color=VERMILION, lw=2, zorder=6, label=f"L(C) = {_formula(fits.law)}")
            bottom = min(bottom, middle.min())
        starts = [curve.loss[curve.flops >= low] for curve in ladder.curves]
        top = max([points["loss"].max(), *(float(loss.max()) for loss in starts if len(loss))])
        # Early steps, at the loss of guessing, would take most of the figure.
        top = min(top, points["loss"].max() * max(1.5, (points["loss"].max() / bottom) ** 0.75 * 1.15))
        log_axis(axes, "x", "flops", low, high, FLOPS)
        log_axis(axes, "y", "loss", bottom * 0.96, top, "loss (nats a token)")
        axes.legend(loc="upper right")
        colours.bar(figure, axes, "parameters N")
    smooth = ", smoothed" if ladder.curve_loss == "training" else ""
    return Drawing(
        "loss_compute",
        f"{ladder.curve_loss.capitalize()} loss of every run{smooth}, coloured by size. Dashed curves are unfinished "
        "runs, a cross is where a run diverged; circles are the runs of the frontier through which L(C) is fitted, "
        "with its 95 % band.",
        figure,
    )


def _formula(fit: "Fit") -> str:
    """The fitted L(C) in mathtext."""
    term = f"{np.exp(fit.theta['a']):.3g}\\,C^{{-{fit.theta['alpha']:.3f}}}"
    return f"${np.exp(fit.theta['e']):.3f} + {term}$" if "e" in fit.theta else f"${term}$"


def _power(fit: "Fit", flops: np.ndarray) -> np.ndarray:
    """Loss of the fit and of each resample, [1 + resamples, n]."""
    thetas = np.array([list(fit.theta.values()), *fit.draws])
    power = np.exp(thetas[:, :1] - thetas[:, 1:2] * np.log(flops))
    return power + np.exp(thetas[:, 2:3]) if "e" in fit.theta else power


def optimal_sizes(ladder: Ladder, fits: "Fits") -> Drawing | None:
    """N*(C) and D*(C) by each approach, with bands; None where there is none."""
    found = fits.by_count[ladder.count]
    flops = ladder.points["flops"]
    x = np.geomspace(flops.min() / 1.3, flops.max() * 4, 120)
    laws: list[tuple[str, str, np.ndarray, np.ndarray]] = []  # label, colour, exponents [.., 2], lines [.., 2, n]
    for label, colour, fit in (("isoFLOP minima", BLUE, found.isoflop), ("envelope", ORANGE, fits.envelope)):
        if not isinstance(fit, str):
            laws.append((label, colour, *_frontier_lines(fit, x)))
    if isinstance(found.optimum, Optimum):
        laws.append(("joint law", GREEN, found.optimum.exponents()[:, :2], found.optimum.at(x)[:, :2]))
    if not laws:
        return None
    with canvas(columns=2, width=10, height=5.0) as (figure, panels):
        for i, (axes, letter) in enumerate(zip(panels, "ND", strict=True)):
            seen = []
            for label, colour, exponents, lines in laws:
                middle, low, high = interval(lines[:, i])
                power, least, most = interval(exponents[:, i])
                axes.fill_between(x, np.exp(low), np.exp(high), color=colour, alpha=0.13, lw=0)
                text = f"{label}: $C^{{\\,{power:.2f}}}$ [{least:.2f}, {most:.2f}]"
                axes.plot(x, np.exp(middle), color=colour, lw=2, label=text)
                seen.append(np.exp(middle))
            if not isinstance(found.isoflop, str):
                optima = found.isoflop.optima
                values = [optimum[("params", "tokens")[i]] for optimum in optima]
                axes.plot([o["flops"] for o in optima], values, "o", color=BLUE, mec="white", ms=7, zorder=5)
                seen.append(np.array(values))
            centre = np.sqrt(x[0] * x[-1]), np.exp(interval(laws[0][3][:, i])[0][len(x) // 2])
            for name, slopes, style in (("Hoffmann", _HOFFMANN, (0, (1, 1.5))), ("Kaplan", _KAPLAN, (0, (5, 2)))):
                line = centre[1] * (x / centre[0]) ** slopes[i]
                axes.plot(x, line, ls=style, color="#666666", lw=1, label=f"slope of {name} et al.: {slopes[i]:.2f}")
            log_axis(axes, "x", "flops", x[0], x[-1], FLOPS)
            label = f"optimal {('parameters', 'tokens')[i]} {letter}*"
            log_axis(axes, "y", "count", *around(np.concatenate(seen), 0.12), label)
            axes.legend(loc="upper left", fontsize=8.2)
            axes.set_ylim(axes.get_ylim()[0], axes.get_ylim()[1] * (axes.get_ylim()[1] / axes.get_ylim()[0]) ** 0.28)
    return Drawing(
        "optimal_sizes",
        "Compute-optimal parameters and tokens by every approach that these runs allow, with 95 % bands and exponents. "
        "Dots are the minima of the isoFLOP curves; grey lines show the published slopes, laid through the middle.",
        figure,
    )


def _frontier_lines(fit: "Frontier", flops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Exponents of N* and D* [1 + resamples, 2], and their logarithms along ``flops`` [1 + resamples, 2, n]."""
    thetas = np.array([list(fit.theta.values()), *fit.draws])
    logs = np.log(flops)
    lines = [thetas[:, 2 * i, None] + thetas[:, 2 * i + 1, None] * logs for i in range(2)]
    return thetas[:, [1, 3]], np.stack(lines, axis=1)


def residuals(ladder: Ladder, fit: "Fit", held_out: "HeldOut | str") -> Drawing:
    """Observed over predicted loss of the joint law, in percent, against compute."""
    points = ladder.points
    a, b, e, alpha, beta = fit.theta.values()
    predicted = np.exp(a) / points["params"] ** alpha + np.exp(b) / points["tokens"] ** beta + np.exp(e)
    off = 100 * (points["loss"] / predicted - 1)
    colours = Colours(points["params"])
    with canvas(height=4.2) as (figure, (axes,)):
        axes.axhline(0, color=INK, lw=1)
        axes.axhspan(-1, 1, color=BLUE, alpha=0.06, lw=0)
        style: dict[str, Any] = {"edgecolors": "white", "linewidths": 0.6, "zorder": 3}
        axes.scatter(points["flops"], off, s=38, c=colours(points["params"]), **style)
        values = list(off)
        if not isinstance(held_out, str):
            marker: dict[str, Any] = {"mfc": "none", "mec": VERMILION, "mew": 1.6, "ms": 9, "ls": ""}
            beyond = 100 * (held_out.points["loss"] / held_out.predicted - 1)
            label = "largest budget, predicted by a fit to the smaller ones"
            axes.plot(held_out.points["flops"], beyond, "D", label=label, **marker)
            axes.legend(loc="best")
            values += list(beyond)
        named = [i for i, name in enumerate(points.names) if any(o.startswith(f"{name} (") for o in fit.outliers)]
        for i in sorted(named, key=lambda i: -abs(off[i]))[:_LABELLED]:
            axes.plot(points["flops"][i], off[i], "o", mfc="none", mec=VERMILION, ms=11)
            right = points["flops"][i] > np.sqrt(points["flops"].min() * points["flops"].max())
            side: dict[str, Any] = {"xytext": (-9 if right else 9, 0), "ha": "right" if right else "left"}
            axes.annotate(
                plain(points.names[i]),
                (points["flops"][i], off[i]),
                textcoords="offset points",
                va="center",
                color=VERMILION,
                fontsize=8.5,
                **side,
            )
        log_axis(axes, "x", "flops", *around(points["flops"]), FLOPS)
        reach = 1.2 * max(1.0, float(np.max(np.abs(values))))
        axes.set(ylim=(-reach, reach), ylabel="observed over predicted (%)")
        colours.bar(figure, axes, "parameters N")
    return Drawing(
        "residuals",
        "How far each run lies from the joint law, above zero where it did worse. The band is one percent.",
        figure,
    )
