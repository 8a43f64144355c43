"""The ranking loss against a direct sum, and against logistic regression."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.objectives.ranking import BINS, compare


def direct(scores, ranks):
    """Of one prompt, over its pairs one by one: loss, accuracy, margin; None without a pair."""
    pairs = [(a, b) for a, b in itertools.permutations(range(len(scores)), 2) if ranks[a] < ranks[b]]
    leads = [scores[a] - scores[b] for a, b in pairs]
    if not leads:
        return None
    return [sum(f(d) for d in leads) / len(leads) for f in (lambda d: math.log1p(math.exp(-d)), lambda d: d > 0, float)]


def padded(rows, fill):
    """Lists of different lengths as one array."""
    most = max(map(len, rows))
    return jnp.asarray([[*row, *[fill] * (most - len(row))] for row in rows], jnp.float32)


def test_mixed_numbers_of_completions_with_ties():
    random = np.random.default_rng(0)
    scores = [random.normal(size=k).tolist() for k in (2, 9, 4, 3, 1, 2)]
    ranks = [random.integers(1, 4, size=len(row)).tolist() for row in scores]
    ranks[0], ranks[5] = [1, 2], [1, 1]
    there = padded([[1] * len(row) for row in scores], 0) > 0
    found = compare(padded(scores, 7.0), padded(ranks, 0), there)
    for i, (row, rank) in enumerate(zip(scores, ranks, strict=True)):
        wanted = direct(row, rank)
        assert float(found.counts[i]) == (wanted is not None)
        np.testing.assert_allclose(
            [found.loss[i], found.accuracy[i], found.margin[i]], wanted or [0, 0, 0], rtol=2e-6, atol=1e-7
        )


def test_a_prompt_with_many_pairs_counts_as_much_as_one_with_few():
    """The known fault is a mean over the pairs of the whole batch."""
    scores, ranks = [[0.0, 1.0], [float(i) for i in range(9, 0, -1)]], [[1, 2], list(range(1, 10))]
    there = padded([[1] * len(row) for row in scores], 0) > 0
    found = compare(padded(scores, 0), padded(ranks, 0), there)
    mean = float(found.loss.sum() / found.counts.sum())
    wanted = [direct(*both)[0] for both in zip(scores, ranks, strict=True)]
    assert mean == pytest.approx(sum(wanted) / 2, rel=1e-6)
    over_pairs = (wanted[0] + 36 * wanted[1]) / 37
    assert abs(mean - over_pairs) > 0.3


def test_what_is_not_there_has_no_part_in_loss_or_gradient():
    scores, ranks = jnp.asarray([[1.0, 2.0, jnp.nan]]), jnp.asarray([[1.0, 2.0, 0.0]])
    there = jnp.asarray([[True, True, False]])
    loss, gradient = jax.value_and_grad(lambda s: compare(s, ranks, there).loss.sum())(scores)
    assert float(loss) == pytest.approx(math.log1p(math.e))
    np.testing.assert_allclose(gradient[0, :2], [-1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-1))], rtol=1e-6)
    assert float(gradient[0, 2]) == 0


def test_bins_of_confidence_hold_every_pair_once():
    random = np.random.default_rng(1)
    scores = jnp.asarray(random.normal(size=(50, 4)) * 3, jnp.float32)
    ranks = jnp.asarray(random.permuted(np.tile(np.arange(1, 5), (50, 1)), axis=1), jnp.float32)
    found = compare(scores, ranks, jnp.ones((50, 4), bool))
    assert found.confident.shape == (50, BINS)
    np.testing.assert_allclose(found.confident.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(found.hits.sum(1), found.accuracy, rtol=1e-6)
    assert (found.hits <= found.confident + 1e-6).all()


# scikit-learn 1.9.1, LogisticRegression(C=inf, fit_intercept=False, tol=1e-12) on differences of the features of
# the better and the worse completion, as they are made below.
COEFFICIENTS = [0.14177870, -1.21131875, 0.20093564]


def test_a_linear_reward_model_is_logistic_regression():
    features, ranks = linear_data()

    def loss(weights):
        found = compare(features @ weights, ranks, jnp.ones(ranks.shape, bool))
        return found.loss.sum() / found.counts.sum()

    weights, step = jnp.zeros(3), jax.jit(lambda w: w - jnp.linalg.solve(jax.hessian(loss)(w), jax.grad(loss)(w)))
    for _ in range(20):
        weights = step(weights)
    np.testing.assert_allclose(weights, COEFFICIENTS, rtol=1e-4)


def linear_data():
    """Features [60, 2, 3] of pairs, and their ranks, which follow a linear reward with noise."""
    random = np.random.default_rng(2)
    features = random.normal(size=(60, 2, 3)).astype(np.float32)
    reward = features @ np.asarray([1.0, -2.0, 0.5]) + random.logistic(size=(60, 2))
    better = reward[:, :1] > reward[:, 1:]
    return jnp.asarray(features), jnp.asarray(np.concatenate([2.0 - better, 1.0 + better], 1), jnp.float32)
