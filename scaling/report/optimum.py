"""Compute-optimal N, D and L of a joint law, in closed form, with C as the runs counted it. No JAX.

The runs' own FLOPs a token are not 6 N: attention adds to them, and a convention of N may leave embeddings out. Over
a sweep they follow k N^g, and L = E + A/N^alpha + B/D^beta is least under C = k N^g D at

    N* = (alpha A / (g beta B))^(1 / (alpha + g beta)) (C/k)^(beta / (alpha + g beta)),   D* = C / (k N*^g),

which is equation 4 of arXiv 2203.15556 where k = 6 and g = 1.
"""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from scaling.laws.points import Points

if TYPE_CHECKING:
    from scaling.laws.fit import Fit


@dataclasses.dataclass(frozen=True)
class Optimum:
    """The optimum of every budget.

    Attributes:
        thetas: a, b, e, alpha, beta; the fit, then its usable resamples, [1 + resamples, 5].
        log_k, g: FLOPs a token are about k N^g.
        spread: the largest relative error of that.
    """

    thetas: np.ndarray
    log_k: float
    g: float
    spread: float

    def exponents(self) -> np.ndarray:
        """Of N*, of D*, and of C in L* - E (with its sign), [1 + resamples, 3]."""
        alpha, beta = self.thetas[:, 3], self.thetas[:, 4]
        params = beta / (alpha + self.g * beta)
        return np.stack([params, 1 - self.g * params, -alpha * params], axis=1)

    def at(self, flops: np.ndarray) -> np.ndarray:
        """log N*, log D*, log L* of FLOPs [n], [1 + resamples, 3, n]."""
        a, b, e, alpha, beta = (column[:, None] for column in self.thetas.T)
        budget = np.log(flops) - self.log_k
        scale = np.log(alpha / (self.g * beta)) + a - b
        params = (scale + beta * budget) / (alpha + self.g * beta)
        tokens = budget - self.g * params
        loss = np.logaddexp(np.logaddexp(a - alpha * params, b - beta * tokens), e)
        return np.stack([params, tokens, loss], axis=1)


def optimum(fit: "Fit", points: Points) -> Optimum:
    """The optimum by a fitted ``chinchilla`` law.

    Raises:
        ValueError: the law falls with neither or only one of N and D, so no budget has an optimum.
    """
    thetas = np.array([list(fit.theta.values()), *fit.draws])
    log_n, log_per_token = np.log(points["params"]), np.log(points["flops"] / points["tokens"])
    g, log_k = np.polyfit(log_n, log_per_token, 1)
    usable = (thetas[:, 3] > 0) & (thetas[:, 4] > 0) & np.all(np.isfinite(thetas), axis=1)
    if not (usable[0] and g > 0):
        raise ValueError("the fitted law has no optimum: its loss does not fall with both N and D")
    spread = float(np.max(np.abs(np.expm1(log_k + g * log_n - log_per_token))))
    return Optimum(thetas[usable], float(log_k), float(g), spread)


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first row and the 95 % percentile interval of the others (of itself where there are none)."""
    others = values[1:] if len(values) > 1 else values
    low, high = np.nanpercentile(others, [2.5, 97.5], axis=0)
    return values[0], low, high
