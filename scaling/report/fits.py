"""The fits of a report. In place of an impossible fit there is a sentence with the reason; it never stops the page."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

from scaling.laws.fit import Fit, fit_law
from scaling.laws.frontier import Frontier, envelope
from scaling.laws.isocurves import isoflop_budgets
from scaling.laws.isoflop import isoflop
from scaling.laws.points import Points
from scaling.laws.runs import COUNTS
from scaling.report.collect import Ladder, frontier_of
from scaling.report.optimum import Optimum, optimum

T = TypeVar("T")
Progress = Callable[[str, int, int], None]  # what is being fitted, fits done, fits in all


@dataclasses.dataclass(frozen=True)
class ByCount:
    """Fits with N counted one way; a string is the reason why there is none."""

    chinchilla: Fit | str
    optimum: Optimum | str
    isoflop: Frontier | str


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Runs of the largest budget as the joint law predicts them that was fitted to all smaller budgets.

    Attributes:
        points: these runs.
        predicted: their loss.
    """

    points: Points
    predicted: np.ndarray

    @property
    def percent(self) -> np.ndarray:
        """Predicted over observed loss, in percent off."""
        return 100 * (self.predicted / self.points["loss"] - 1)


@dataclasses.dataclass(frozen=True)
class Fits:
    """All fits of a page; a string is the reason why there is none.

    Attributes:
        compute: L(C) of the frontier with irreducible loss, and ``compute_pure`` without.
        envelope: approach 1, along the loss curves.
        held_out: the largest budget predicted from the others.
        by_count: approaches 2 and 3 by each convention of N.
    """

    frontier: Points
    compute: Fit | str
    compute_pure: Fit | str
    envelope: Frontier | str
    held_out: HeldOut | str
    by_count: Mapping[str, ByCount]

    @property
    def law(self) -> Fit | str:
        """L(C) as the headline gives it: with irreducible loss where the runs can tell it from zero, else without."""
        told = isinstance(self.compute, Fit) and not any("flat" in warning for warning in self.compute.warnings)
        return self.compute if told else self.compute_pure


def fit_all(ladder: Ladder, *, resamples: int = 1000, progress: Progress = lambda *_: None) -> Fits:
    """Every fit of the page.

    Args:
        ladder: the runs.
        resamples: bootstrap resamples of each fit.
        progress: is told what comes next.
    """
    counts = counts_of(ladder)
    total = 4 + 2 * len(counts)
    done = 0

    def attempt(title: str, fit: Callable[[], T]) -> T | str:
        nonlocal done
        progress(title, done, total)
        done += 1
        try:
            return fit()
        except ValueError as error:
            return str(error)

    frontier = frontier_of(ladder.points)
    power = functools.partial(fit_law, frontier, "power", resamples=resamples, against="flops")
    compute = attempt("L(C)", lambda: power(irreducible=True))
    pure = attempt("L(C) without irreducible loss", lambda: power(irreducible=False))
    by_envelope = attempt("envelope", lambda: envelope(ladder.curve_points(), resamples=resamples))
    held_out = attempt("L(N, D) without the largest budget", lambda: hold_out(ladder.points))
    by_count = {}
    for count in counts:
        points = ladder.points_by(count)
        joint = attempt(f"L(N, D), N {count}", functools.partial(fit_law, points, "chinchilla", resamples=resamples))
        curves = attempt(f"isoFLOP curves, N {count}", functools.partial(isoflop, points, resamples=resamples))
        best = joint if isinstance(joint, str) else _optimum(joint, points)
        by_count[count] = ByCount(joint, best, curves)
    progress("done", total, total)
    return Fits(frontier, compute, pure, by_envelope, held_out, by_count)


def counts_of(ladder: Ladder) -> tuple[str, ...]:
    """Conventions of N in the order of ``COUNTS``, without those that give every run the N of the ladder's own."""

    def sizes(count: str) -> list[int]:
        return [entry.run.num_params(count) for entry in ladder.entries]

    return tuple(c for c in COUNTS if c == ladder.count or sizes(c) != sizes(ladder.count))


def hold_out(points: Points) -> HeldOut:
    """Predicts the runs of the largest budget from a joint law of all others.

    The whole budget is predicted, because other runs of its isoFLOP curve would reveal the loss of a single run.

    Raises:
        ValueError: the other runs allow no fit.
    """
    largest = isoflop_budgets(points["flops"])[-1]
    fit = fit_law(points.take(~largest), "chinchilla", resamples=0)
    held = points.take(largest)
    return HeldOut(held, fit.loss(params=held["params"], tokens=held["tokens"]))


def _optimum(fit: Fit, points: Points) -> Optimum | str:
    try:
        return optimum(fit, points)
    except ValueError as error:
        return str(error)
