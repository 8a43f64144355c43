"""Figures of a comparison of ladders: their laws, and the ratio of compute at equal loss."""

from typing import TYPE_CHECKING, Any

import numpy as np

from scaling.report.compute_figures import FLOPS
from scaling.report.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PALE,
    PURPLE,
    VERMILION,
    Drawing,
    around,
    canvas,
    log_axis,
    plain,
)

if TYPE_CHECKING:
    from scaling.report.comparison import Ladders

_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE)
_SAMPLES = 160


def laws(ladders: "Ladders") -> Drawing:
    """Every run's last loss, each frontier, and its L(C) with its band."""
    every = [ladder.points for ladder in ladders.each]
    low, high = around(np.concatenate([points["flops"] for points in every]), 0.08)
    flops = np.geomspace(low, high, _SAMPLES)
    losses = np.concatenate([points["loss"] for points in every])
    with canvas(height=5.6) as (figure, (axes,)):
        for i, (name, points, frontier) in enumerate(zip(ladders.names, every, ladders.frontiers, strict=True)):
            colour = _colour(i)
            middle, below, above = ladders.found.loss(i, flops)
            axes.fill_between(flops, below, above, color=colour, alpha=0.15, lw=0, zorder=2)
            axes.plot(flops, middle, color=colour, lw=2, zorder=3, label=f"{plain(name)}: {_formula(ladders, i)}")
            axes.plot(points["flops"], points["loss"], "o", color=colour, alpha=0.4, mec="none", ms=4.5, zorder=4)
            ring: dict[str, Any] = {"mfc": "none", "mec": colour, "mew": 1.5, "ms": 8.5, "zorder": 5}
            axes.plot(frontier["flops"], frontier["loss"], "o", **ring)
        log_axis(axes, "x", "flops", low, high, FLOPS)
        log_axis(axes, "y", "loss", *around(losses, 0.08), "loss (nats a token)")
        axes.legend(loc="upper right")
    return Drawing(
        "laws_compute",
        "The last loss of every run. Circles are the best runs of their budgets, through which L(C) of each ladder is "
        "fitted by least squares, with its 95 % band.",
        figure,
    )


def ratio(ladders: "Ladders") -> Drawing:
    """The baseline's compute over each other ladder's, against the loss, and the one ratio of a common shape."""
    found = ladders.found
    shown = [1.0]
    spans = []
    with canvas(height=5.2) as (figure, (axes,)):
        axes.axhline(1, color=INK, lw=1)
        for i, name in ladders.others():
            colour, shared = _colour(i), found.shared[i]
            assert shared
            span = found.common_losses(i)
            loss = np.geomspace(*span, _SAMPLES)
            middle, below, above = found.ratio(i, loss)
            axes.fill_between(loss, below, above, color=colour, alpha=0.15, lw=0, zorder=2)
            axes.plot(loss, middle, color=colour, lw=2, zorder=4, label=f"{plain(name)}: separate laws")
            value, low, high = shared.ratio
            style: dict[str, Any] = {"color": PALE if shared.contradicted else colour, "lw": 1.3, "zorder": 3}
            axes.plot(span, [value, value], "--", label=f"one ratio: {value:.2f} [{low:.2f}, {high:.2f}]", **style)
            for bound in (low, high):
                axes.plot(span, [bound, bound], ":", **style)
            # Each best run beside the other ladder's law at its loss.
            ends = _at_equal_loss(ladders, i)
            axes.plot(*ends, "o", color=colour, mec="white", ms=6.5, zorder=5)
            shown += [*middle, low, high, *ends[1], *np.clip([*below, *above], middle.min() / 2, middle.max() * 2)]
            spans += [*span, *ends[0]]
        log_axis(axes, "x", "loss", *around(spans, 0.04), "loss (nats a token)")
        axes.invert_xaxis()  # training goes to the right
        log_axis(axes, "y", "loss", *around(shown), f"compute of {plain(ladders.names[0])} over compute at equal loss")
        axes.legend(loc="best")
    return Drawing(
        "compute_ratio",
        f"How many times the compute {ladders.names[0]} needs for an equal loss: by the separate laws with a 95 % "
        "band, and by one law for both with the 95 % interval of its one ratio (dashed and dotted; grey where the runs "
        "contradict it). A dot is a best run of either ladder beside the other ladder's law.",
        figure,
    )


def _at_equal_loss(ladders: "Ladders", i: int) -> tuple[np.ndarray, np.ndarray]:
    """Loss and ratio of the best runs of both ladders in the common range, each with the other ladder's law."""
    found = ladders.found
    low, high = found.common_losses(i)
    losses, ratios = [], []
    for frontier, law, sign in ((ladders.frontiers[0], i, 1), (ladders.frontiers[i], 0, -1)):
        inside = (low <= frontier["loss"]) & (frontier["loss"] <= high)
        loss, flops = frontier["loss"][inside], frontier["flops"][inside]
        losses.append(loss)
        ratios.append((flops / found.flops(law, loss)) ** sign)
    return np.concatenate(losses), np.concatenate(ratios)


def _formula(ladders: "Ladders", i: int) -> str:
    e, a, (alpha, *_) = ladders.found.law(i)
    return f"${e:.3f} + {a:.3g}\\,C^{{-{alpha:.3f}}}$"


def _colour(i: int) -> str:
    return _COLOURS[i % len(_COLOURS)]
