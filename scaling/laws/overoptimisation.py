"""How a true reward changes while a model is optimised against a proxy of it (Gao et al., arXiv 2210.10760).

All functions are of NumPy arrays. A distance is d = sqrt(KL), where KL is the divergence from the model at the start,
in nats an answer; a reward is that over the mean of the model at the start, so it is 0 at d = 0.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

# R(d) by the two columns that alpha and -beta multiply.
FORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "best_of_n": lambda d: np.stack([d, d * d], axis=1),  # d (alpha - beta d)
    "rl": lambda d: np.stack([d, d * np.log(np.where(d > 0, d, 1.0))], axis=1),  # d (alpha - beta log d)
}


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted form.

    Attributes:
        form: of ``FORMS``.
        alpha: slope at small distances.
        beta: how fast the gain turns into a loss.
        alpha_interval: 95 %, by the bootstrap; None = not computed.
        beta_interval: the same.
    """

    form: str
    alpha: float
    beta: float
    alpha_interval: tuple[float, float] | None = None
    beta_interval: tuple[float, float] | None = None

    def __call__(self, distance: np.ndarray) -> np.ndarray:
        """The reward at distances [n]."""
        return FORMS[self.form](np.asarray(distance, float)) @ np.array([self.alpha, -self.beta])


def best_of_n_kl(n: int) -> float:
    """The divergence of the best of n answers, log n - (n - 1) / n nats (arXiv 2009.01325, appendix G.3)."""
    return math.log(n) - (n - 1) / n


def best_of_n(by: np.ndarray, reward: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """The expected reward of the best of n answers to each prompt (arXiv 2112.09332, appendix I).

    The estimate is the mean over all subsets of n of the N answers that were drawn, so it is unbiased. Answers that are
    equally good share the place of the best.

    Args:
        by: what decides which answer is best, [prompts, N].
        reward: what is averaged, [prompts, N].
        sizes: values of n, each from 1 to N.

    Returns:
        float64 [prompts, len(sizes)].
    """
    assert by.shape == reward.shape and all(1 <= n <= by.shape[1] for n in sizes)
    total = by.shape[1]
    weights = np.array([[math.comb(i, n - 1) / math.comb(total, n) for i in range(total)] for n in sizes])
    return np.stack([weights @ _from_worst_to_best(*row) for row in zip(by, reward, strict=True)])


def _from_worst_to_best(by: np.ndarray, reward: np.ndarray) -> np.ndarray:
    """Rewards [N] by growing ``by`` [N]; of equals, each has their mean."""
    _, group = np.unique(by, return_inverse=True)
    means = np.bincount(group, reward) / np.bincount(group)
    return means[np.sort(group)]


def fit(form: str, distance: np.ndarray, reward: np.ndarray) -> Fit:
    """Alpha and beta by least squares.

    Args:
        form: of ``FORMS``.
        distance: [n].
        reward: [n].

    Raises:
        ValueError: fewer than two different distances above 0.
    """
    distance, reward = np.asarray(distance, float), np.asarray(reward, float)
    if len(np.unique(distance[distance > 0])) < 2:
        raise ValueError("alpha and beta need rewards at two or more distances above 0")
    alpha, minus_beta = np.linalg.lstsq(FORMS[form](distance), reward, rcond=None)[0]
    return Fit(form, float(alpha), float(-minus_beta))


def fit_over_prompts(form: str, distance: np.ndarray, rewards: np.ndarray, resamples: int = 1000, seed: int = 0) -> Fit:
    """The fit of the mean over prompts, with intervals by resampling prompts.

    Args:
        form: of ``FORMS``.
        distance: [n].
        rewards: [prompts, n].
        resamples: of the bootstrap.
        seed: of the resamples.
    """
    random = np.random.default_rng(seed)
    chosen = random.integers(len(rewards), size=(resamples, len(rewards)))
    draws = [fit(form, distance, rewards[index].mean(0)) for index in chosen]
    return _with_intervals(fit(form, distance, rewards.mean(0)), draws)


def fit_over_points(form: str, distance: np.ndarray, reward: np.ndarray, resamples: int = 1000, seed: int = 0) -> Fit:
    """The fit of points, with intervals by resampling points; a resample that has too few is drawn again.

    Args:
        form: of ``FORMS``.
        distance: [n].
        reward: [n].
        resamples: of the bootstrap.
        seed: of the resamples.

    Raises:
        ValueError: as ``fit``.
    """
    distance, reward = np.asarray(distance, float), np.asarray(reward, float)
    found, random, draws = fit(form, distance, reward), np.random.default_rng(seed), list[Fit]()
    while len(draws) < resamples:
        index = random.integers(len(distance), size=len(distance))
        if len(np.unique(distance[index][distance[index] > 0])) >= 2:
            draws.append(fit(form, distance[index], reward[index]))
    return _with_intervals(found, draws)


def _with_intervals(found: Fit, draws: Sequence[Fit]) -> Fit:
    low, high = np.percentile([[draw.alpha, draw.beta] for draw in draws], [2.5, 97.5], axis=0)
    return dataclasses.replace(
        found,
        alpha_interval=(float(low[0]), float(high[0])),
        beta_interval=(float(low[1]), float(high[1])),
    )
