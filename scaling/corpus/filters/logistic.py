"""Logistic regression over sparse features, and the area under the ROC curve.

Nothing here calls BLAS, whose sums depend on the number of threads. So the same documents give the same bytes on a
laptop and in a worker of a cluster, which may use one core.
"""

from collections import deque

import numpy as np
import scipy.sparse

HISTORY = 10  # steps that L-BFGS remembers
TOLERANCE = 1e-6  # of the largest component of the gradient
ARMIJO = 1e-4  # share of the promised decrease that a step must give


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow."""
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1.0, small) / (1.0 + small)


def fit(
    rows: scipy.sparse.csr_matrix, labels: np.ndarray, penalty: float, iterations: int
) -> tuple[np.ndarray, float, float, int]:
    """Minimises the mean log loss plus penalty / 2 times the squared norm of the weights, by L-BFGS.

    Both classes have the weight 1/2. The bias has no penalty.
    Source: Nocedal and Wright, Numerical Optimization (2006), algorithms 7.4 and 7.5, with backtracking.

    Args:
        rows: features float64 [n, features].
        labels: 0 or 1, [n]; both occur.
        penalty: not negative.
        iterations: at most so many.

    Returns:
        the weights float64 [features], the bias, the loss with its penalty, the number of iterations.
    """
    columns = rows.T.tocsr()
    share = 0.5 / np.bincount(labels, minlength=2)[labels]
    sign = np.where(labels == 1, 1.0, -1.0)

    def value(at: np.ndarray) -> tuple[float, np.ndarray]:
        margins = sign * (rows @ at[:-1] + at[-1])
        loss = float(np.sum(share * np.logaddexp(0.0, -margins))) + penalty / 2 * _dot(at[:-1], at[:-1])
        pull = -share * sign * sigmoid(-margins)
        return loss, np.append(columns @ pull + penalty * at[:-1], np.sum(pull))

    at = np.zeros(rows.shape[1] + 1)
    loss, gradient = value(at)
    steps: deque[tuple[np.ndarray, np.ndarray, float]] = deque(maxlen=HISTORY)
    for iteration in range(iterations):
        if np.abs(gradient).max() < TOLERANCE:
            return at[:-1], float(at[-1]), loss, iteration
        direction = _direction(gradient, steps)
        slope, size = _dot(gradient, direction), 1.0
        while True:
            new = at + size * direction
            new_loss, new_gradient = value(new)
            if new_loss <= loss + ARMIJO * size * slope:
                break
            size /= 2
            if size < 1e-10:  # rounding hides any further decrease
                return at[:-1], float(at[-1]), loss, iteration
        moved, turned = new - at, new_gradient - gradient
        curvature = _dot(moved, turned)
        if curvature > 0:
            steps.append((moved, turned, curvature))
        at, loss, gradient = new, new_loss, new_gradient
    return at[:-1], float(at[-1]), loss, iterations


def _direction(gradient: np.ndarray, steps: deque[tuple[np.ndarray, np.ndarray, float]]) -> np.ndarray:
    """Minus the gradient times an estimate of the inverse Hessian (the two loops of L-BFGS)."""
    if not steps:
        return -gradient / np.sqrt(_dot(gradient, gradient))
    found, pulls = -gradient, []
    for moved, turned, curvature in reversed(steps):
        pulls.append(_dot(moved, found) / curvature)
        found = found - pulls[-1] * turned
    _, turned, curvature = steps[-1]
    found = found * (curvature / _dot(turned, turned))
    for (moved, turned, curvature), pull in zip(steps, reversed(pulls), strict=True):
        found = found + (pull - _dot(turned, found) / curvature) * moved
    return found


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sum(a * b))


def area_under_curve(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """The probability that a positive has a higher score than a negative; equal scores count half.

    Args:
        scores: [n].
        labels: 0 or 1, [n].

    Returns:
        the area, or None if a class has no documents.
    """
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return None
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return float((ranks[labels == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))
