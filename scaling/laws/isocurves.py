"""IsoFLOP curves: the sizes of one budget of FLOPs, a curve of loss over log N through them, its minimum. No JAX.

The curve is a parabola (arXiv 2203.15556, section 3.2), or an interpolation through all sizes (Akima's; arXiv
2406.19146, appendix C).
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.interpolate import Akima1DInterpolator

from scaling.laws.points import Points

CURVES = ("parabola", "akima")
SAME_SIZE = 0.02  # sizes that were chosen to differ do so by more, those read off a figure twice by less
NOISE = 0.005  # nats a token between seeds, where no size was trained several times
NOISY = 1000  # curves with the noise of other seeds
_SAME_BUDGET = 1.1  # runs of one isoFLOP curve may differ by this factor in FLOPs
_SIZES = 4  # of one isoFLOP curve, at least
_PER_INTERVAL = 25  # interpolated sizes between two sizes
_REACH = np.log(2.0)  # a parabola is fitted to sizes within this distance of its minimum in log N,
_WIDER = 1.3  # or within so many times the distance of the fourth nearest size, if that is more
_NEAR = 0.05  # sizes of less weight than this part of the full one are far; they are not fitted
_OUTLIER = 5.0  # robust standard deviations
_REPEATS = 3  # repeated runs, at least, that may say that the noise is less than ``NOISE``
_TESTED = 7  # nearest sizes, at least, among which outliers are looked for
_TRIED = 12  # of these, at most, parabolas go through each three
_SMALL = 0.02  # part of the loss; by less no run is an outlier, and no minimum is below all sizes by more
_ROUNDS = 50  # of moving the parabola to its minimum
_ROUNDING = 1e-6  # sizes that differ by no more are one, whatever the user says: no curve goes through both
_GREATEST = 700.0  # log loss that a float still holds


@dataclasses.dataclass(frozen=True)
class Curve:
    """The sizes of one budget, and the curve through them.

    Attributes:
        kind: of ``CURVES``.
        flops: geometric mean of the budget.
        x: log N of each size, growing [n].
        log_tokens: log D of each size [n].
        loss: mean over the runs of each size that are no outliers (over all where all are), nats a token [n].
        runs: number of these runs [n].
        noisy_loss: the losses with the noise of other seeds [n, NOISY].
        weights: of the sizes in the parabola [n], 0 = not fitted; for an interpolation 1.
        far: sizes too far from the minimum to be fitted [n].
        off: log N and loss of runs near the minimum that are off the parabola [outliers, 2].
        outliers: the same, a sentence each.
    """

    kind: str
    flops: float
    x: np.ndarray
    log_tokens: np.ndarray
    loss: np.ndarray
    runs: np.ndarray
    noisy_loss: np.ndarray
    weights: np.ndarray
    far: np.ndarray
    off: np.ndarray
    outliers: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"budget {self.flops:.3g} FLOPs"

    @property
    def fitted(self) -> np.ndarray:
        """Sizes that the curve goes by [n]."""
        return self.weights > 0

    def at(self, x: np.ndarray) -> np.ndarray:
        """Loss of the curve at log N [m]; straight lines where the sizes are too few for a curve."""
        if len(self.x) < _SIZES:
            return np.interp(x, self.x, self.loss)
        if self.kind == "akima":
            logs = Akima1DInterpolator(self.x, np.log(self.loss))(np.clip(x, self.x[0], self.x[-1]))
            return np.exp(np.minimum(logs, _GREATEST))  # between sizes that lie close together it may swing beyond
        shift, solve = self._parabola
        return _powers(x - shift) @ (solve @ self.loss)

    @functools.cached_property
    def noisy(self) -> np.ndarray:
        """log N, log D, log loss at the minimum of each curve with noise [NOISY, 3]; NaN where it is not inside."""
        return self._minima(self.noisy_loss)

    @property
    def inside(self) -> float:
        """Part of the curves with noise whose minimum is inside the sizes."""
        return float(np.isfinite(self.noisy[:, 0]).mean())

    @functools.cached_property
    def minimum(self) -> np.ndarray:
        """log N, log D, log loss where the loss is least [3]; NaN where that is not inside the sizes.

        Of a parabola the vertex; of an interpolation the median over those with noise (arXiv 2406.19146), because the
        noise of a few runs makes its minimum jump. The loss is within those of the sizes that are fitted.
        """
        if self.reason:
            return np.full(3, np.nan)
        if self.kind == "parabola":
            return self._minima(self.loss[:, None])[0]
        x, log_tokens, loss = np.nanmedian(self.noisy, axis=0)
        return np.array([x, log_tokens, np.clip(loss, *np.log([self.loss.min(), self.loss.max()]))])

    @functools.cached_property
    def reason(self) -> str:
        """Why there is no minimum; empty if there is one."""
        if len(self.x) < _SIZES:
            return f"{len(self.x)} sizes are too few, at least {_SIZES} are needed"
        found = self._minima(self.loss[:, None])[0, 0]
        if self.inside >= 0.5 and (self.kind == "akima" or np.isfinite(found)):
            return ""
        good = np.flatnonzero(self.runs)
        ends = self.x[self.fitted][[0, -1]]
        along = self.at(np.linspace(ends[0], ends[1], 200))
        if 0 < np.argmin(along) < 199 and along.min() < (1 - _SMALL) * self.loss[good].min():
            return "no size is near the minimum of its curve"
        for end, index in (("smallest", good[0]), ("largest", good[-1])):
            if self.loss[index] == self.loss[good].min():
                return f"the minimum is not inside the data, the {end} size ({np.exp(self.x[index]):.3g}) is best"
        return "the minimum is not inside the data on most curves with the noise of other seeds"

    def _minima(self, loss: np.ndarray) -> np.ndarray:
        """log N, log D, log loss at the minimum of the curve through each column of ``loss`` [n, m], as [m, 3]."""
        kept, ends = loss[self.fitted], self.x[self.fitted][[0, -1]]
        if self.kind == "akima":
            fine = np.linspace(ends[0], ends[1], (len(self.x) - 1) * _PER_INTERVAL)
            logs = Akima1DInterpolator(self.x, np.log(loss))(fine)
            x, least = fine[np.argmin(logs, axis=0)], np.exp(logs.min(axis=0))
            inside = (ends[0] < x) & (x < ends[1])
        else:
            shift, solve = self._parabola
            constant, slope, bend = solve @ loss
            from_shift = -slope / (2 * np.where(bend > 0, bend, 1))
            x, least = shift + from_shift, constant + slope * from_shift / 2
            inside = (bend > 0) & (ends[0] < x) & (x < ends[1])
        # Any curve may swing below all of its losses where its sizes are far apart. Its minimum must not: by more than
        # a little it tells nothing, and else it is what was measured.
        inside &= least > (1 - _SMALL) * kept.min(axis=0)
        least = np.clip(least, kept.min(axis=0), kept.max(axis=0))
        found = np.stack([x, np.interp(x, self.x, self.log_tokens), np.log(least)], axis=1)
        return np.where(inside[:, None], found, np.nan)

    @functools.cached_property
    def _parabola(self) -> tuple[float, np.ndarray]:
        """A shift of log N, and the matrix [3, n] from losses to the parabola's coefficients in what is left."""
        shift = float(np.average(self.x, weights=self.weights))
        return shift, _least_squares(self.x - shift, self.weights)


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


@dataclasses.dataclass(frozen=True)
class IsoFlop:
    """The curves of all budgets, by growing budget, and the noise of a run in them.

    Attributes:
        noise: standard deviation of a run's loss between seeds, nats a token.
        source: where that comes from.
    """

    curves: tuple[Curve, ...]
    noise: float
    source: str


def isoflop_curves(
    points: Points,
    *,
    curve: str = "parabola",
    same_size: float = SAME_SIZE,
    noise: float | None = None,
    seed: int = 0,
) -> IsoFlop:
    """The curve of each budget.

    Args:
        points: several sizes at each of several budgets of FLOPs.
        curve: of ``CURVES``.
        same_size: sizes that differ by no more than this part are one, trained several times.
        noise: standard deviation of the loss between seeds, nats a token; None = that between the runs of one size,
            ``NOISE`` where there are none.
        seed: of the noise.

    Raises:
        ValueError: an option that cannot be.
    """
    if curve not in CURVES:
        raise ValueError(f"--curve={curve} must be {' or '.join(CURVES)}")
    if not 0 <= same_size < 1:
        raise ValueError(f"--same_size={same_size} must be a part of the size, at least 0 and less than 1")
    if noise is not None and not 0 < noise < np.inf:
        raise ValueError(f"--noise={noise} must be a positive number of nats")
    budgets = [_distinct(points.take(mask)) for mask in isoflop_budgets(points["flops"])]
    sizes = [_sizes(budget["params"], max(same_size, _ROUNDING)) for budget in budgets]
    source = "given"
    if noise is None:
        noise, source = _noise([budget["loss"] for budget in budgets], sizes)
    rng = np.random.default_rng(seed)
    curves = tuple(_curve(budget, size, curve, noise, rng) for budget, size in zip(budgets, sizes, strict=True))
    return IsoFlop(curves, noise, source)


def _distinct(budget: Points) -> Points:
    """The points by growing size, copies (the same N, D and loss) once: they are no second run."""
    columns = [budget[quantity] for quantity in ("params", "tokens", "loss")]
    first = np.unique(np.stack(columns), axis=1, return_index=True)[1]
    return budget.take(np.isin(np.arange(len(budget)), first))


def _sizes(params: np.ndarray, same_size: float) -> np.ndarray:
    """The number of each point's size, by growing size [n]; a size spans at most ``same_size`` of its smallest."""
    number, first = -1, 0.0
    found = np.zeros(len(params), int)
    for index in np.argsort(params, kind="stable"):
        if params[index] > first * (1 + same_size):
            number, first = number + 1, params[index]
        found[index] = number
    return found


def _noise(losses: Sequence[np.ndarray], sizes: Sequence[np.ndarray]) -> tuple[float, str]:
    """Standard deviation of the loss between the runs of a size, and where it comes from.

    Every run's distance from the mean of its n runs, times sqrt(n / (n - 1)), has that deviation. Distances of a tenth
    of the loss, and of more than five robust deviations, are those of outliers.
    """
    distances, repeats = [], 0
    for loss, size in zip(losses, sizes, strict=True):
        count = np.bincount(size)
        mean = np.bincount(size, loss) / count
        distance = np.abs(loss - mean[size]) * np.sqrt(count / np.maximum(count - 1, 1))[size]
        kept = (count[size] > 1) & (distance < _OUTLIER * _SMALL * mean[size])
        distances.append(distance[kept])
        repeats += int(kept.sum()) - len(np.unique(size[kept]))
    if not repeats:
        return NOISE, "assumed, because no two runs share a size"
    distance = np.concatenate(distances)
    # Of one or two pairs the median is no robust measure.
    spread = 1.4826 * float(np.median(distance)) if repeats >= _REPEATS else 0.0
    usual = distance <= _OUTLIER * max(spread, NOISE)
    noise = float(np.sqrt(np.mean(distance[usual] ** 2))) if usual.any() else 0.0
    if repeats < _REPEATS and noise < NOISE:
        return NOISE, "assumed, because too few runs share a size"
    return max(noise, 1e-9), f"that between runs of one size ({repeats} degrees of freedom)"


def _curve(budget: Points, size: np.ndarray, kind: str, noise: float, rng: np.random.Generator) -> Curve:
    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(size, values) / np.bincount(size)

    x, log_tokens, losses = mean(np.log(budget["params"])), mean(np.log(budget["tokens"])), budget["loss"]
    kernel, off = np.ones(len(x)), np.zeros(len(size), bool)
    if kind == "parabola" and len(x) >= _SIZES:
        kernel, off = _near_minimum(x, losses, size, noise)
    runs = np.bincount(size, ~off, len(x))
    loss = np.where(runs > 0, np.bincount(size, losses * ~off) / np.maximum(runs, 1), mean(losses))
    # Of the logarithm, so that no loss becomes negative.
    deviation = (noise / np.sqrt(np.maximum(runs, 1)) / loss)[:, None] * rng.standard_normal((len(x), NOISY))
    flops = float(np.exp(np.log(budget["flops"]).mean()))
    near = np.flatnonzero(off & (kernel > 0)[size])
    outliers = tuple(
        f"budget {flops:.3g} FLOPs: {budget.names[i]}, {budget['params'][i]:.3g} parameters, loss {losses[i]:.4g}"
        for i in near
    )
    return Curve(
        kind=kind,
        flops=flops,
        x=x,
        log_tokens=log_tokens,
        loss=loss,
        runs=runs,
        noisy_loss=loss[:, None] * np.exp(deviation),
        weights=kernel if kind == "akima" else kernel * runs,
        far=kernel == 0,
        off=np.stack([x[size[near]], losses[near]], axis=1),
        outliers=outliers,
    )


def _near_minimum(x: np.ndarray, losses: np.ndarray, size: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the sizes by their distance from the minimum of a parabola [n], and which runs are off it [runs].

    A curve of loss is a parabola only near its minimum, so weights fall with the distance from it, and the
    parabola moves to its own minimum until it stays there.

    Args:
        x: log N of each size [n].
        losses: of each run.
        size: index of each run's size.
        noise: of a run's loss, nats a token.
    """
    typical = np.array([np.median(losses[size == i]) for i in range(len(x))])
    # The lowest median of three neighbours: one size that is far off, low or high, does not decide. Of equal ones
    # (rounded losses) the lowest itself.
    smooth = np.median([np.r_[typical[:1], typical[:-1]], typical, np.r_[typical[1:], typical[-1:]]], axis=0)
    at, wider = x[np.lexsort((typical, smooth))[0]], _WIDER
    for step in range(_ROUNDS):
        off = _off(x - at, typical, losses, size, noise, wider)
        good = np.bincount(size, ~off, len(x)) > 0
        reach = max(_REACH, wider * np.sort(np.abs(x - at)[good])[_SIZES - 1])
        kernel = _tricube(x - at, reach)
        _, slope, bend = _least_squares((x - at)[size], kernel[size] * ~off) @ losses
        if bend <= 0 and not kernel.all():  # noise hides the bend of so few sizes
            wider *= _WIDER
            continue
        moved = np.clip(at - slope / (2 * bend), x[0], x[-1]) if bend > 0 else at
        if abs(moved - at) < 1e-6:
            break
        at += (moved - at) * (1 if step < 5 else 0.5)  # half steps later: it must not go to and fro for ever
    return kernel, off


def _off(
    x: np.ndarray, typical: np.ndarray, losses: np.ndarray, size: np.ndarray, noise: float, wider: float
) -> np.ndarray:
    """Runs near x = 0 that are off the parabola through three sizes which most others are near to [runs].

    That parabola has the least sum of distances, none counted as more than a limit (as in RANSAC), so neither a loss
    nor a size that is far off moves it.
    """
    weights = _tricube(x, max(_REACH, wider * np.sort(np.abs(x))[min(_TESTED, len(x)) - 1]))
    tested = weights > 0
    tried, off = np.flatnonzero(tested), np.zeros(len(losses), bool)
    if len(tried) <= _SIZES:
        return off  # too few for one that is off to show
    if len(tried) > _TRIED:
        tried = tried[np.linspace(0, len(tried) - 1, _TRIED).round().astype(int)]
    triples = np.array(list(itertools.combinations(tried, 3)))
    through = np.linalg.solve(_powers(x[triples]), typical[triples][..., None])[..., 0]  # [triples, 3]
    residuals = np.abs(losses - through @ _powers(x[size]).T)[:, tested[size]]  # [triples, tested runs]
    limit = max(_OUTLIER * noise, _SMALL * float(typical[tested].min()))
    best = np.argmin(np.minimum(residuals, limit) @ weights[size][tested[size]])
    rest = np.sort(residuals[best])[3:]  # it goes through three
    usual = 1.4826 * rest[(len(rest) - 1) // 2]
    off[tested[size]] = residuals[best] > max(_OUTLIER * usual, limit)
    # Where fewer sizes remain than a curve needs, it cannot be said which runs are off.
    return off & (len(np.unique(size[~off])) >= _SIZES)


def _tricube(x: np.ndarray, reach: float) -> np.ndarray:
    """Cleveland's weights, 1 at x = 0; 0 from a little less than ``reach`` on."""
    weights = np.clip(1 - np.abs(x / reach) ** 3, 0, None) ** 3
    return np.where(weights < _NEAR, 0, weights)


def _powers(x: np.ndarray) -> np.ndarray:
    return np.stack([np.ones_like(x), x, x * x], axis=-1)


def _least_squares(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The matrix [3, n] from values at ``x`` [n] to the coefficients of their parabola."""
    root = np.sqrt(weights)
    return np.linalg.pinv(_powers(x) * root[:, None]) * root


def to_json(curve: Curve) -> dict[str, Any]:
    """Budget, sizes and what became of them, as plain values."""
    state = np.where(curve.fitted, "fitted", np.where(curve.far, "far", "outlier"))
    columns = (np.exp(curve.x), np.exp(curve.log_tokens), curve.loss, curve.runs, state)
    names = ("params", "tokens", "loss", "runs", "state")
    sizes = [dict(zip(names, row, strict=True)) for row in zip(*(c.tolist() for c in columns), strict=True)]
    return {"flops": curve.flops, "sizes": sizes, "reason": curve.reason}
