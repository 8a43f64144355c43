"""Means over tokens as weights, against loops; estimators of the divergence, against enumerated distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.objectives import means
from scaling.objectives.kl import ESTIMATORS, k3

MASK = np.asarray([[0, 1, 1, 1, 0], [0, 0, 1, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], np.float32)
LOSS = np.arange(20, dtype=np.float32).reshape(4, 5)


def rows(which):
    return [LOSS[i][MASK[i] > 0] for i in which]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (means.token(MASK), np.concatenate(rows(range(4))).mean()),
        (means.sequence(MASK), np.mean([row.mean() for row in rows(range(3))])),
        (means.constant(MASK, 8), np.mean([row.sum() / 8 for row in rows(range(3))])),
        (means.prompt(MASK, 2), np.mean([np.concatenate(rows((0, 1))).mean(), np.concatenate(rows((2, 3))).mean()])),
        (means.prompt(MASK, 1), np.mean([row.mean() for row in rows(range(3))])),
    ],
    ids=["token", "sequence", "constant", "prompt", "prompt of one"],
)
def test_each_mean(weights, expected):
    assert float((weights * LOSS).sum()) == pytest.approx(expected, rel=1e-6)


def test_a_batch_without_answers_weighs_nothing():
    none = np.zeros((2, 3), np.float32)
    for weights in (means.token(none), means.sequence(none), means.constant(none, 3), means.prompt(none, 2)):
        assert np.array_equal(weights, none)


LOGITS = jax.random.normal(jax.random.key(0), (12,))
REFERENCE = jax.nn.log_softmax(jax.random.normal(jax.random.key(1), (12,)))


def divergence(logits):
    found = jax.nn.log_softmax(logits)
    return (jnp.exp(found) * (found - REFERENCE)).sum()


def reverse(logits):
    return (jnp.exp(REFERENCE) * (REFERENCE - jax.nn.log_softmax(logits))).sum()


@pytest.mark.parametrize(
    ("name", "target"), [("k1", lambda logits: 0 * logits.sum()), ("k2", divergence), ("k3", reverse)]
)
def test_the_expected_gradient_of_each_estimator_as_a_loss(name, target):
    drawn = jax.nn.softmax(LOGITS)  # the odds of the draws, through which no gradient flows

    def loss(logits):
        return (drawn * ESTIMATORS[name](jax.nn.log_softmax(logits) - REFERENCE)).sum()

    np.testing.assert_allclose(jax.grad(loss)(LOGITS), jax.grad(target)(LOGITS), atol=1e-6)


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_the_mean_of_an_estimator_without_bias_is_the_divergence(name):
    found = jax.nn.log_softmax(LOGITS)
    mean = (jnp.exp(found) * ESTIMATORS[name](found - REFERENCE)).sum()
    assert float(mean) == pytest.approx(float(divergence(LOGITS)), rel=1e-5)


@pytest.mark.parametrize("log_ratio", [-80.0, -20.0, 0.0, 80.0])
def test_far_from_the_reference_k3_and_its_gradient_are_finite_and_point_back(log_ratio):
    value, slope = jax.value_and_grad(k3)(log_ratio)
    assert np.isfinite(float(value) ** 2) and np.isfinite(float(slope) ** 2)
    assert value >= 0 and np.sign(slope) == np.sign(log_ratio)
