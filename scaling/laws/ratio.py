"""L(C) of several ladders, and the ratio of the compute that they need for an equal loss. No JAX.

Each ladder's frontier follows L_i(C) = E_i + A_i C^-alpha_i. The ratio at a loss is that of the compute at which the
two laws have it. Where all that differs is how much a FLOP is worth, the laws have one shape, L_i(C) = L_0(r C), and
one number r is the ratio at every loss; it is far better determined than the ratio of two separate laws.

All fits are least squares of log loss. Intervals are those of the linearised fit with Student's t, because a bootstrap
of seven budgets and three parameters gives intervals that are too narrow. The noise is taken to be the same for all
ladders, so their residuals tell it together.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import least_squares
from scipy.stats import f as f_distribution
from scipy.stats import t as t_distribution

from scaling.laws.points import Points

POINTS = 4  # of a frontier, at least: one more than the law has parameters
DOUBTFUL = 0.05  # a common shape that would fit so badly with this probability or less is contradicted
_PARAMETERS = 3  # log E, log of the reducible loss at the mean log C, alpha
_STARTS = tuple((e, 0.4, alpha) for e in (0.2, 0.8) for alpha in (0.05, 0.2, 0.5))
_NAMED = 5  # losses at which the ratio is stated


@dataclasses.dataclass(frozen=True)
class Shared:
    """One law for two ladders, L_i(C) = L_0(r C).

    Attributes:
        ratio: r and its 95 % interval [3]: so many times the compute of ladder i the baseline needs for equal loss.
        p_value: of the F test against separate laws: the probability that they fit so much better by chance.
    """

    ratio: np.ndarray
    p_value: float

    @property
    def contradicted(self) -> bool:
        """The ladders' laws differ in shape, so their ratio is not the same at every loss."""
        return self.p_value < DOUBTFUL


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Laws of all ladders; the first ladder is the baseline.

    Attributes:
        theta: log E, log of A C^-alpha at log C = ``centre``, alpha of each ladder [ladders, 3].
        covariance: of these [ladders, 3, 3].
        ends: least and greatest log C of each frontier [ladders, 2].
        centre: mean log C of all frontiers.
        deviation: standard deviation of the log loss around the laws.
        dof: degrees of freedom of this deviation.
        shared: of each ladder with the baseline; None for the baseline.
    """

    theta: np.ndarray
    covariance: np.ndarray
    ends: np.ndarray
    centre: float
    deviation: float
    dof: int
    shared: tuple[Shared | None, ...]

    def law(self, ladder: int) -> tuple[float, float, np.ndarray]:
        """E, A, and alpha with its 95 % interval [3]."""
        e, a, alpha = self.theta[ladder]
        error = self._quantile * np.sqrt(self.covariance[ladder, 2, 2])
        return float(np.exp(e)), float(np.exp(a + alpha * self.centre)), alpha + error * np.array([0, -1, 1])

    def loss(self, ladder: int, flops: np.ndarray) -> np.ndarray:
        """L(C) and its 95 % interval at ``flops`` [n], nats a token [3, n]."""
        logs = np.log(flops) - self.centre
        gradient = _gradient(self.theta[ladder], logs)
        return self._interval(_log_loss(self.theta[ladder], logs), self._variance(ladder, gradient))

    def flops(self, ladder: int, loss: np.ndarray) -> np.ndarray:
        """C at which the law has a ``loss`` [n]; NaN where it never does."""
        return np.exp(_log_flops(self.theta[ladder], loss)[0] + self.centre)

    def common_losses(self, ladder: int) -> tuple[float, float]:
        """Lowest and highest loss that both this ladder's and the baseline's law have within their frontiers."""
        found = [np.exp(_log_loss(self.theta[i], self.ends[i] - self.centre)) for i in (0, ladder)]
        return float(max(low for _, low in found)), float(min(high for high, _ in found))

    def named_losses(self, ladder: int) -> np.ndarray:
        """A few losses of three digits inside the common range, by falling loss; its ends are the least certain."""
        low, high = self.common_losses(ladder)
        losses = [float(f"{loss:.3g}") for loss in np.geomspace(high, low, _NAMED + 2)[1:-1]]
        inside = [loss for loss in dict.fromkeys(losses) if low <= loss <= high]
        return np.array(inside or [np.sqrt(low * high)])

    def ratio(self, ladder: int, loss: np.ndarray) -> np.ndarray:
        """The baseline's compute over this ladder's at equal ``loss`` [n] by their own laws, with 95 % interval [3, n].

        NaN at a loss that one of the laws never reaches.
        """
        logs, variance = np.zeros(len(loss)), np.zeros(len(loss))
        for sign, i in ((1, 0), (-1, ladder)):
            value, gradient = _log_flops(self.theta[i], loss)
            logs += sign * value
            variance += self._variance(i, gradient)
        return self._interval(logs, variance)

    @property
    def _quantile(self) -> float:
        return float(t_distribution.ppf(0.975, self.dof))

    def _variance(self, ladder: int, gradient: np.ndarray) -> np.ndarray:
        return np.einsum("pn,pq,qn->n", gradient, self.covariance[ladder], gradient)

    def _interval(self, logs: np.ndarray, variance: np.ndarray) -> np.ndarray:
        error = self._quantile * np.sqrt(variance)
        return np.exp(np.stack([logs, logs - error, logs + error]))


def compare(frontiers: Sequence[Points], names: Sequence[str]) -> Comparison:
    """Fits the law of each ladder, and with the baseline a law of common shape.

    Args:
        frontiers: the best run of each budget of every ladder, the baseline first.
        names: of the ladders, for messages.

    Raises:
        ValueError: a frontier with too few runs, or ladders without a common range of loss.
    """
    for name, frontier in zip(names, frontiers, strict=True):
        if len(frontier) < POINTS:
            runs = f"{len(frontier)} run{'s' * (len(frontier) != 1)}"
            raise ValueError(
                f"the frontier of {name} has {runs}; a law needs at least {POINTS} budgets, each with a lower loss "
                "than all smaller ones"
            )
    logs = [(np.log(frontier["flops"]), np.log(frontier["loss"])) for frontier in frontiers]
    centre = float(np.mean(np.concatenate([x for x, _ in logs])))
    data = [(x - centre, y) for x, y in logs]
    fits = [_fit(_separate(x, y), _starts(y)) for x, y in data]
    dof = sum(len(x) for x, _ in data) - _PARAMETERS * len(data)
    variance = sum(fit.squares for fit in fits) / dof
    found = Comparison(
        theta=np.stack([fit.theta for fit in fits]),
        covariance=np.stack([fit.inverse * variance for fit in fits]),
        ends=np.array([[x.min(), x.max()] for x, _ in logs]),
        centre=centre,
        deviation=float(np.sqrt(variance)),
        dof=dof,
        shared=(None, *(_shared(data[0], other, fits[0].squares + fit.squares) for other, fit in _rest(data, fits))),
    )
    for i, name in enumerate(names[1:], 1):
        low, high = found.common_losses(i)
        if low >= high:
            spans = " and ".join(
                f"{each} from {frontier['loss'].max():.4g} to {frontier['loss'].min():.4g}"
                for each, frontier in ((names[0], frontiers[0]), (name, frontiers[i]))
            )
            raise ValueError(
                f"the frontiers have no common range of loss, {spans}; train budgets with which both ladders reach "
                "the same losses"
            )
    return found


@dataclasses.dataclass(frozen=True)
class _Fit:
    """Parameters [P], the inverse of J^T J [P, P], the sum of squared residuals."""

    theta: np.ndarray
    inverse: np.ndarray
    squares: float


Data = tuple[np.ndarray, np.ndarray]  # log C from the centre, log loss


def _rest(data: Sequence[Data], fits: Sequence[_Fit]) -> list[tuple[Data, _Fit]]:
    return list(zip(data[1:], fits[1:], strict=True))


def _log_loss(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    e, a, alpha = theta
    return np.logaddexp(e, a - alpha * x)


def _gradient(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Of the log loss by the parameters [3, n]."""
    e, a, alpha = theta
    reducible = np.exp(a - alpha * x - np.logaddexp(e, a - alpha * x))  # part of the loss
    return np.stack([1 - reducible, reducible, -x * reducible])


def _log_flops(theta: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log C from the centre at which the law has a loss [n], and its gradient by the parameters [3, n]."""
    e, a, alpha = theta
    reducible = np.where(loss > np.exp(e), loss - np.exp(e), np.nan)
    x = (a - np.log(reducible)) / alpha
    return x, np.stack([np.exp(e) / reducible / alpha, np.full_like(x, 1 / alpha), -x / alpha])


def _separate(x: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    return lambda theta: _log_loss(theta, x) - y


def _starts(y: np.ndarray) -> np.ndarray:
    """Starts as parts of the lowest loss, in logarithms [starts, 3]."""
    return np.array([(y.min() + np.log(e), y.min() + np.log(a), alpha) for e, a, alpha in _STARTS])


def _fit(residuals: Callable[[np.ndarray], np.ndarray], starts: np.ndarray) -> _Fit:
    found = [least_squares(residuals, start, x_scale="jac", xtol=1e-12, ftol=1e-12) for start in starts]
    best = min(found, key=lambda result: float(result.cost))
    # Without a limit to the loss, log E has no curvature; the pseudo-inverse leaves it out.
    return _Fit(best.x, np.linalg.pinv(best.jac.T @ best.jac, rcond=1e-12, hermitian=True), 2 * float(best.cost))


def _shared(baseline: Data, other: Data, separate: float) -> Shared:
    """The common shape; ``separate`` is the sum of squared residuals of both ladders' own laws."""
    (x0, y0), (x1, y1) = baseline, other

    def residuals(theta: np.ndarray) -> np.ndarray:
        law, log_ratio = theta[:_PARAMETERS], theta[_PARAMETERS]
        return np.concatenate([_log_loss(law, x0) - y0, _log_loss(law, x1 + log_ratio) - y1])

    starts = _starts(np.concatenate([y0, y1]))
    fit = _fit(residuals, np.column_stack([starts, np.zeros(len(starts))]))
    count = len(x0) + len(x1)
    dof, more = count - _PARAMETERS - 1, _PARAMETERS - 1
    error = t_distribution.ppf(0.975, dof) * np.sqrt(fit.inverse[-1, -1] * fit.squares / dof)
    left = count - 2 * _PARAMETERS
    # Of points exactly on both laws nothing is left to be explained.
    statistic = (fit.squares - separate) / more / max(separate / left, 1e-20)
    ratio = np.exp(fit.theta[_PARAMETERS] + error * np.array([0, -1, 1]))
    return Shared(ratio, float(f_distribution.sf(max(0.0, statistic), more, left)))
