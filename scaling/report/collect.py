"""Reads the runs of a report: their state, final points and loss curves. No JAX, no model code."""

import dataclasses
import itertools
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from scaling.laws.points import Points
from scaling.laws.runs import fault, reasons_left_out, run_points, unusable
from scaling.runs.json_lines import is_number, is_sound
from scaling.runs.run_directory import RunDirectory, find_runs, load

_EVALUATIONS = 5  # of each run, at least, to draw its validation loss; else the training loss is drawn
_SMOOTHING = 1.06  # a training loss is the mean over records from tokens / this to tokens * this
_DRAWN = 300  # points of a curve, spread evenly over log tokens


STATES = ("finished", "unfinished", "diverged", "damaged", "copy", "rewards")


@dataclasses.dataclass(frozen=True)
class Curve:
    """Loss along a run: FLOPs [n], tokens [n], loss [n], by growing tokens."""

    run: str
    params: float
    flops: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    state: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """A run as the page lists it.

    Attributes:
        name: short name, unique on the page.
        state: one of ``STATES``.
        reason: why it is not used; empty if it is.
        seconds: of training, all attempts together; NaN where nothing was logged.
        loss: the last one; NaN where there is none.
    """

    name: str
    run: RunDirectory
    params: float
    tokens: float
    steps: int
    seconds: float
    loss: float
    state: str
    reason: str

    @property
    def flops(self) -> float:
        return self.run.flops_per_token * self.tokens


@dataclasses.dataclass(frozen=True)
class Ladder:
    """The runs of a report.

    Attributes:
        entries: every run, by growing compute.
        points: one a finished run.
        curves: one a run that logged any loss, copies excepted.
        curve_loss: what the curves show, validation or training.
        count: convention of N, ``loss`` of the points.
    """

    entries: tuple[Entry, ...]
    points: Points
    curves: tuple[Curve, ...]
    curve_loss: str
    count: str
    loss: str

    def points_by(self, count: str) -> Points:
        """The same points with N by another convention."""
        points = run_points([entry.run for entry in self.entries], count=count, loss=self.loss)
        return _named(points, self.entries)

    def curve_points(self) -> Points:
        """The curves of finished and unfinished runs as points, for an envelope."""
        curves = [curve for curve in self.curves if curve.state in ("finished", "unfinished")]
        names = tuple(curve.run for curve in curves for _ in curve.loss)
        columns = {name: np.concatenate([getattr(c, name) for c in curves]) for name in ("flops", "tokens", "loss")}
        columns["params"] = np.concatenate([np.full(len(c.loss), c.params) for c in curves])
        return Points(names, names, columns)


def collect(paths: Sequence[epath.PathLike], *, count: str = "active", loss: str = "validation") -> Ladder:
    """Reads the runs in ``paths``.

    Args:
        paths: run directories, or folders of them.
        count: convention of N (``scaling.laws.runs.COUNTS``).
        loss: validation or training.

    Raises:
        ValueError: no usable run, runs that cannot be compared, or a damaged config.
        FileNotFoundError: no such path.
    """
    runs = [load(path) for path in find_runs(paths)]
    points = run_points(runs, count=count, loss=loss)
    named = zip(short_names([str(run.path) for run in runs]), runs, reasons_left_out(runs, loss), strict=True)
    entries = sorted((_entry(name, run, count, loss, reason) for name, run, reason in named), key=_by_compute)
    drawn = "training"
    if all(len(e.run.evals) >= _EVALUATIONS for e in entries if e.state == "finished") and loss == "validation":
        drawn = "validation"
    curves = [_curve(entry, drawn) for entry in entries if entry.state not in ("copy", "rewards")]
    return Ladder(
        entries=tuple(entries),
        points=_named(points, entries),
        curves=tuple(curve for curve in curves if len(curve.loss) > 1),
        curve_loss=drawn,
        count=count,
        loss=loss,
    )


def frontier_of(points: Points) -> Points:
    """The best run of each budget of FLOPs, where no cheaper run is as good: the lower envelope of final losses."""
    from scaling.laws.isocurves import isoflop_budgets  # here, because SciPy takes half a second

    kept = np.zeros(len(points), bool)
    best = math.inf
    for budget in isoflop_budgets(points["flops"]):
        index = np.flatnonzero(budget)
        lowest = index[np.argmin(points["loss"][index])]
        if points["loss"][lowest] < best:
            best = points["loss"][lowest]
            kept[lowest] = True
    return points.take(kept)


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with keys joined by dots."""
    if not isinstance(values, dict):
        return {prefix: values}
    return {k: v for key, value in values.items() for k, v in flatten(value, f"{prefix}.{key}".strip(".")).items()}


def _by_compute(entry: Entry) -> tuple[float, float, str]:
    """Budget, to a few percent, then size."""
    flops = entry.run.flops_per_token * entry.run.config["train"]["tokens"]
    return round(math.log10(flops), 1), entry.params, entry.name


def _entry(name: str, run: RunDirectory, count: str, loss: str, reason: str) -> Entry:
    last = run.records(loss)[-1:]
    logged = [record for record in (*run.metrics[-1:], *last) if is_number(record.get("tokens"))]
    return Entry(
        name=name,
        run=run,
        params=float(run.num_params(count)),
        tokens=max((float(record["tokens"]) for record in logged), default=0.0),
        steps=max((int(record["step"]) for record in logged if is_number(record.get("step"))), default=0),
        seconds=_seconds(run.metrics),
        loss=float(last[0]["loss"]) if last and is_number(last[0]["loss"]) else math.nan,
        state=_state(run, loss, reason),
        reason=reason,
    )


def _state(run: RunDirectory, loss: str, reason: str) -> str:
    if not reason:
        return "finished"
    if reason.startswith("diverged"):
        return "diverged"
    if run.learns_from_rewards:
        return "rewards"
    if not unusable(run, loss):
        return "copy"
    return "damaged" if fault(run, loss) or fault(run, "training") else "unfinished"


def _seconds(metrics: Sequence[dict[str, Any]]) -> float:
    """``seconds`` counts from the start of each attempt; their sum."""
    seconds = [float(record["seconds"]) for record in metrics if is_number(record.get("seconds"))]
    if not seconds:
        return math.nan
    return seconds[-1] + sum(this for this, following in itertools.pairwise(seconds) if following < this)


def _curve(entry: Entry, loss: str) -> Curve:
    records = {float(r["tokens"]): float(r["loss"]) for r in entry.run.records(loss) if is_sound(r)}
    tokens = np.array(sorted(records))
    values = np.array([records[t] for t in tokens])
    if loss == "training":
        values = smoothed(tokens, values)
    index = drawn_points(tokens)
    tokens, values = tokens[index], values[index]
    return Curve(entry.name, entry.params, entry.run.flops_per_token * tokens, tokens, values, entry.state)


def smoothed(tokens: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The mean of what was logged [n, ...] from a few percent fewer ``tokens`` [n], growing, to a few percent more."""
    total = np.concatenate([np.zeros_like(values[:1]), np.cumsum(values, axis=0)]) if len(values) else values
    first = np.searchsorted(tokens, tokens / _SMOOTHING)
    last = np.searchsorted(tokens, tokens * _SMOOTHING, side="right")
    return (total[last] - total[first]) / (last - first).reshape(-1, *[1] * (values.ndim - 1))


def drawn_points(tokens: np.ndarray) -> np.ndarray:
    """Which points of a curve are drawn: all of a short one, else some at equal distances in log ``tokens`` [n]."""
    if len(tokens) <= _DRAWN:
        return np.arange(len(tokens))
    wanted = np.geomspace(tokens[0], tokens[-1], _DRAWN)
    return np.unique(np.clip(np.searchsorted(tokens, wanted * (1 - 1e-9)), 0, len(tokens) - 1))


def short_names(paths: Sequence[str]) -> list[str]:
    """The last parts of the paths, or all that lies below their common folder if these are not unique."""
    names = [epath.Path(path).name for path in paths]
    if len(set(names)) == len(names):
        return names
    parts = [os.path.normpath(path).split("/") for path in paths]
    common = sum(1 for _ in itertools.takewhile(lambda level: len(set(level)) == 1, zip(*parts, strict=False)))
    return ["/".join(each[common:]) for each in parts] if common else list(paths)


def _named(points: Points, entries: Sequence[Entry]) -> Points:
    """The points with the short names of the page."""
    short = {str(entry.run.path): entry.name for entry in entries}
    left_out = tuple(f"{entry.name}: {entry.reason}" for entry in entries if entry.reason)
    names = tuple(short[name] for name in points.names)
    return dataclasses.replace(points, names=names, runs=names, left_out=left_out)
