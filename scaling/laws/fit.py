"""Fits a parametric law to points from a grid of starts, with bootstrap intervals and warnings about doubtful fits."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from scaling import json_text
from scaling.laws import forms
from scaling.laws.points import Points, require_independence, require_variety
from scaling.laws.solver import Minima, minimise

_POLISHED = 64  # number of the best starts that are followed to the minimum
_HELD_OUT_STARTS = 200
_OUTLIER = 5.0  # robust standard deviations
_FLAT_MOVE, _FLAT_RISE = (
    0.2,
    0.01,
)  # a relative change of an exponent, and the relative rise of the objective that it should cause
_RIVAL = 0.01  # minima with a relative difference of the objective up to this are rivals


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted law, with everything that ``scaling predict`` needs.

    Attributes:
        form: name of the law, and ``options`` of ``forms.form``.
        theta: fitted parameters, logarithms as fitted.
        intervals: 95 % percentile interval of each; empty without resamples.
        objective: sum of Huber terms at ``theta``.
        draws: parameters fitted to each bootstrap resample, [resamples, P].
        held_out: the run with the largest compute left out of the fit and predicted: name, observed, predicted,
            error_percent.
        outliers: points with residuals of more than five robust standard deviations, with the residual in percent.
        warnings: reasons to doubt the fit, one sentence each.
        starts_at_best: fraction of the starts that ended within 0.1 % of the objective.
    """

    form: str
    options: Mapping[str, Any]
    delta: float
    error: str
    num_points: int
    theta: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    objective: float
    held_out: Mapping[str, Any]
    outliers: tuple[str, ...]
    outliers_dropped: bool
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]
    starts_at_best: float
    draws: tuple[tuple[float, ...], ...]

    @property
    def law(self) -> forms.Form:
        return forms.form(self.form, **self.options)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    def loss(self, **sizes: Any) -> np.ndarray:
        """The loss in nats a token, float64, that the law gives at sizes.

        Args:
            sizes: what the law needs of params, tokens, flops and unique; numbers or arrays that broadcast together.

        Raises:
            ValueError: other sizes than the law needs.
        """
        if set(sizes) != set(self.law.needs):
            raise ValueError(
                f"{self.law.formula} needs {', '.join(self.law.needs)}; got {', '.join(sizes) or 'nothing'}"
            )
        logs = {quantity: np.log(values) for quantity, values in sizes.items()}
        return np.exp(predict_log_loss(self.law, np.array(list(self.theta.values())), logs))


def load_fit(path: epath.PathLike) -> dict[str, Any]:
    """The dict of a file written by ``scaling fit --json``.

    Raises:
        ValueError: not such a file.
        FileNotFoundError: no such file.
    """
    try:
        values = json_text.read(epath.Path(path).read_text(encoding="utf-8"), str(path))
    except json_text.Unreadable:
        raise
    except ValueError:
        values = None
    if not isinstance(values, dict) or not {"form", "draws"} <= values.keys():
        raise ValueError(f"{path} is not a fit; write one with `scaling fit ... --json > FIT.json`")
    return values


def fit_law(
    points: Points,
    form: str,
    *,
    delta: float = 1e-3,
    error: str = "log",
    resamples: int = 1000,
    drop_outliers: bool = False,
    seed: int = 0,
    starts: np.ndarray | None = None,
    **options: Any,
) -> Fit:
    """Fits ``forms.form(form, **options)``.

    Args:
        points: at least one more than the law has parameters.
        form: power, kaplan, chinchilla or data_constrained.
        delta: Huber's delta, in log loss (in nats a token if ``error`` is of the loss).
        error: of the log loss ("log") or of the loss itself ("loss"; arXiv 2403.08540).
        resamples: bootstrap resamples of runs (points of one run stay together).
        drop_outliers: fit again without the outliers, which are named either way.
        seed: of the resamples.
        starts: [S, P] instead of the law's grid.
        options: of ``forms.form``.

    Raises:
        ValueError: too few or too similar points, or an impossible delta.
    """
    law = forms.form(form, **options)
    if not delta > 0:
        raise ValueError(f"--delta={delta} must be positive")
    if error not in ("log", "loss"):
        raise ValueError(f"--error={error} must be log or loss")
    if len(points) <= len(law.names):
        raise ValueError(
            f"{len(points)} points are too few for the {len(law.names)} parameters of {law.formula}; "
            f"it needs at least {len(law.names) + 1}"
        )
    needs = [quantity for quantity in law.needs if quantity != "unique"]
    if {"params", "tokens"} <= set(needs):
        require_independence(points)
    require_variety(points, needs, 3 if "e" in law.names and not options.get("equal_exponents") else 2)
    require_variety(points, ["loss"], 2)
    if "unique" in law.needs and not np.any(points["tokens"] > points["unique"]):
        raise ValueError(
            "no run sees its unique tokens more than once, so R_D* cannot be fitted; use --form=chinchilla"
        )
    problem = _Problem(law, points, delta, error)
    grid = law.starts() if starts is None else starts
    minima = problem.solve(grid, polished=_POLISHED)
    best = minima.theta[np.argmin(minima.objective)]
    if not np.isfinite(minima.objective.min()):
        raise ValueError(f"no start of {law.formula} gives a finite objective; check the columns and their units")
    residuals = problem.residuals(best)
    off = _outliers(residuals)
    outliers = tuple(f"{points.names[i]} ({100 * np.expm1(-residuals[i]):+.1f} %)" for i in np.flatnonzero(off))
    if drop_outliers and outliers:
        again: dict[str, Any] = {"delta": delta, "error": error, "resamples": resamples, "seed": seed, "starts": starts}
        kept = fit_law(points.take(~off), form, **again, **options)
        return dataclasses.replace(kept, outliers=outliers, outliers_dropped=True)
    rivals = _rivals(law, minima)
    draws = problem.bootstrap(rivals, resamples, np.random.default_rng(seed))
    intervals = np.percentile(draws, [2.5, 97.5], axis=0).T.tolist() if resamples else []
    return Fit(
        form=form,
        options=options,
        delta=delta,
        error=error,
        num_points=len(points),
        theta=dict(zip(law.names, best.tolist(), strict=True)),
        intervals={name: (low, high) for name, (low, high) in zip(law.names, intervals, strict=False)},
        objective=float(minima.objective.min()),
        held_out=problem.held_out(np.concatenate([rivals, grid[:: max(1, len(grid) // _HELD_OUT_STARTS)]])),
        outliers=outliers,
        outliers_dropped=False,
        left_out=points.left_out,
        warnings=tuple(problem.doubts(rivals, minima.objective.min())),
        starts_at_best=float(np.mean(minima.objective <= 1.001 * minima.objective.min())),
        draws=tuple(map(tuple, draws.tolist())),
    )


class _Problem:
    """A law, the points as logarithms, and delta."""

    def __init__(self, law: forms.Form, points: Points, delta: float, error: str):
        self.law, self.points, self.delta, self.log_error = law, points, delta, error == "log"
        self.sizes = {quantity: np.log(points[quantity]) for quantity in law.needs}
        self.observed = np.log(points["loss"])

    def solve(self, starts: np.ndarray, **options: Any) -> Minima:
        law = self.law.log_loss if self.log_error else forms.loss_of(self.law.log_loss)
        observed = self.observed if self.log_error else np.exp(self.observed)
        return minimise(law, starts, self.sizes, observed, delta=self.delta, **options)

    def residuals(self, theta: np.ndarray) -> np.ndarray:
        """Predicted minus observed log loss [n]."""
        return predict_log_loss(self.law, theta, self.sizes) - self.observed

    def bootstrap(self, rivals: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
        """Best parameters of each resample of runs [resamples, P]; each is fitted from all rival minima."""
        groups = self.points.groups
        runs = groups.max() + 1
        counts = rng.multinomial(runs, np.full(runs, 1 / runs), size=resamples)[:, groups].astype(float)
        if not resamples:
            return np.empty((0, len(self.law.names)))
        each = self.solve(np.tile(rivals, (resamples, 1)), weights=np.repeat(counts, len(rivals), axis=0))
        winner = np.argmin(each.objective.reshape(resamples, -1), axis=1)
        return each.theta.reshape(resamples, len(rivals), -1)[np.arange(resamples), winner]

    def held_out(self, starts: np.ndarray) -> dict[str, Any]:
        """The run with the largest compute, predicted by a fit to the others."""
        size = sum(self.sizes[quantity] for quantity in self.law.needs if quantity != "unique")
        largest = int(np.argmax(size))
        kept = self.points.groups != self.points.groups[largest]
        if kept.sum() <= len(self.law.names):
            return {}
        minima = self.solve(starts, weights=kept.astype(float), polished=_POLISHED)
        residual = self.residuals(minima.theta[np.argmin(minima.objective)])[largest]
        observed = float(self.points["loss"][largest])
        return {
            "name": self.points.names[largest],
            "observed": observed,
            "predicted": float(observed * np.exp(residual)),
            "error_percent": float(100 * np.expm1(residual)),
        }

    def doubts(self, rivals: np.ndarray, objective: float) -> list[str]:
        """Sentences about a flat optimum, rival minima and too few runs."""
        doubts = []
        law, best = self.law, rivals[0]
        for rival in rivals[1:]:
            pairs = ", ".join(
                f"{name} {best[law.names.index(name)]:.4g} or {rival[law.names.index(name)]:.4g}"
                for name in law.exponents
            )
            doubts.append(f"starts disagree: minima within {_RIVAL:.0%} of the objective have {pairs}")
        for name, rise in self._profile(best, objective).items():
            if rise < _FLAT_RISE:
                doubts.append(
                    f"the optimum is flat: {name} moved by {_FLAT_MOVE:.0%} raises the objective by only {rise:.2%}"
                )
        runs = len(set(self.points.runs))
        if runs < 3 * len(law.names):
            doubts.append(f"{runs} runs are few for {len(law.names)} parameters")
        return doubts

    def _profile(self, best: np.ndarray, objective: float) -> dict[str, float]:
        """Name -> smallest relative rise of the objective when it is moved up or down and the others fitted again."""
        names = [name for name in self.law.names if name in (*self.law.exponents, "e")]
        moves = [(name, sign) for name in names for sign in (-1, 1)]
        starts, free = np.tile(best, (len(moves), 1)), np.ones((len(moves), len(best)))
        for row, (name, sign) in enumerate(moves):
            column = self.law.names.index(name)
            size = 1.0 if name == "e" else abs(best[column])  # e is a logarithm: 0.2 is 20 % of E
            starts[row, column] += sign * _FLAT_MOVE * size
            free[row, column] = 0
        moved = self.solve(starts, free=free).objective
        # Nothing is a part of an objective of 0, that of points exactly on the law: any rise from it is steep.
        rises = moved / objective - 1 if objective > 0 else np.where(moved > 0, np.inf, 0.0)
        return {name: max(0.0, float(rises[2 * i : 2 * i + 2].min())) for i, name in enumerate(names)}


def predict_log_loss(law: forms.Form, theta: Any, sizes: Mapping[str, Any]) -> np.ndarray:
    """log loss in float64; ``theta`` [P] or [draws, P] gives [n] or [draws, n]."""
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        function = jax.vmap(law.log_loss, (0, None)) if np.ndim(theta) == 2 else law.log_loss
        return np.asarray(jax.jit(function)(np.asarray(theta, np.float64), dict(sizes)))


def _outliers(residuals: np.ndarray) -> np.ndarray:
    """True for residuals that are far from the others, by their median absolute deviation."""
    distance = np.abs(residuals - np.median(residuals))
    return distance > np.maximum(_OUTLIER * 1.4826 * np.median(distance), 1e-6)


def _rivals(law: forms.Form, minima: Minima) -> np.ndarray:
    """The best minimum, and at most two others about as good with an exponent that differs by a tenth, [1..3, P]."""
    order = np.argsort(minima.objective)[:_POLISHED]
    columns = [law.names.index(name) for name in law.exponents]
    rivals = [minima.theta[order[0]]]
    for index in order[1:]:
        if minima.objective[index] > (1 + _RIVAL) * minima.objective[order[0]] or len(rivals) == 3:
            break
        theta = minima.theta[index]
        if all(np.any(np.abs(theta - r)[columns] > 0.1 * np.abs(r[columns])) for r in rivals):
            rivals.append(theta)
    return np.stack(rivals)
