"""Rewards and advantages of tokens, against direct sums and small numbers by hand."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from scaling.align.rl import advantages
from scaling.align.rl.texts import left_aligned

RANDOM = np.random.default_rng(0)
MASK = np.asarray([[0, 1, 1, 1, 1, 0], [0, 0, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1]], np.float32)
REWARDS, VALUES = RANDOM.normal(size=(2, *MASK.shape)).astype(np.float32)
FIXTURE = Path(__file__).parents[2] / "fixtures" / "gae.json"


@pytest.mark.parametrize(("gamma", "decay"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_advantages_are_the_discounted_sums_of_errors_to_the_end_of_the_answer(gamma, decay):
    found = advantages.gae(REWARDS, VALUES, MASK, gamma, decay)
    for row, mask in enumerate(MASK):
        places = np.flatnonzero(mask)
        assert np.all(np.asarray(found[row])[mask == 0] == 0)
        values = [*VALUES[row][places], 0.0]  # nothing comes after the last token
        errors = [REWARDS[row][t] + gamma * values[i + 1] - values[i] for i, t in enumerate(places)]
        for i, t in enumerate(places):
            expected = sum((gamma * decay) ** (j - i) * errors[j] for j in range(i, len(places)))
            assert float(found[row][t]) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_advantages_equal_those_of_other_implementations():
    """The fixture says which, and was made by the script beside it."""
    for case in json.loads(FIXTURE.read_text())["cases"]:
        rewards, values, mask = (np.asarray(case[name], np.float32) for name in ("rewards", "values", "mask"))
        found = advantages.gae(rewards, values, mask, case["gamma"], case["lambda"])
        for name, expected in case["advantages"].items():
            np.testing.assert_allclose(found, np.asarray(expected) * mask, rtol=1e-5, atol=1e-5, err_msg=name)


def test_what_is_no_token_of_the_answer_may_be_anything():
    dirty = [np.where(MASK > 0, x, np.nan).astype(np.float32) for x in (REWARDS, VALUES)]
    np.testing.assert_array_equal(
        advantages.gae(*dirty, MASK, 1.0, 0.95), advantages.gae(REWARDS, VALUES, MASK, 1.0, 0.95)
    )
    np.testing.assert_array_equal(
        advantages.whitened(dirty[0], MASK, "sample"), advantages.whitened(REWARDS, MASK, "sample")
    )


def test_the_score_comes_with_the_last_token_and_the_divergence_with_each():
    scores = np.asarray([5.0, -2.5, 0.25], np.float32)
    found = advantages.token_rewards(scores, REWARDS, VALUES, MASK, jnp.float32(0.1))
    expected = -0.1 * (REWARDS - VALUES) * MASK
    for row, place in enumerate((4, 3, 5)):
        expected[row, place] += scores[row]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variance", ["sample", "population"])
def test_whitening_is_over_the_tokens_of_answers_alone(variance):
    found = np.asarray(advantages.whitened(REWARDS, MASK, variance))
    inside = REWARDS[MASK > 0].astype(np.float64)
    expected = (inside - inside.mean()) / inside.std(ddof=variance == "sample")
    np.testing.assert_allclose(found[MASK > 0], expected, rtol=1e-5, atol=1e-5)
    assert np.all(found[MASK == 0] == 0)


def test_advantages_within_groups():
    scores = np.asarray([1, 0, 0, 3, 2, 2, 2, 2], np.float32)
    plain = advantages.group_advantages(scores, 4, by_spread=False)
    np.testing.assert_allclose(plain, [0, -1, -1, 2, 0, 0, 0, 0])
    spread = np.std([1, 0, 0, 3], ddof=1)
    scaled = advantages.group_advantages(scores, 4, by_spread=True)
    np.testing.assert_allclose(scaled, np.asarray([0, -1, -1, 2, 0, 0, 0, 0]) / spread, rtol=1e-3)


def test_a_group_of_equal_scores_has_no_advantage_whatever_rounding_says():
    scores = np.full(7, 0.1, np.float32)
    assert np.all(np.asarray(advantages.group_advantages(scores, 7, by_spread=True)) == 0)


@pytest.mark.parametrize(("observed", "change"), [(12.0, 1.02), (6.0, 1.0), (3.0, 0.98), (6.6, 1.01)])
def test_the_coefficient_grows_when_the_divergence_is_above_its_target(observed, change):
    found = advantages.next_kl(jnp.float32(0.2), jnp.float32(observed), 6.0, answers=100, horizon=1000.0)
    assert float(found) == pytest.approx(0.2 * change, rel=1e-5)


def test_a_fixed_coefficient_stays():
    assert float(advantages.next_kl(jnp.float32(0.2), jnp.float32(99.0), 0.0, 100, 1000.0)) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("rule", "expected"), [("keep", [0.7, 0.2]), ("replace", [0.7, -1.5]), ("add", [0.7, 0.2 - 1.5])]
)
def test_the_score_of_an_answer_without_an_end(rule, expected):
    scores, ended = np.asarray([0.7, 0.2], np.float32), np.asarray([True, False])
    np.testing.assert_allclose(advantages.scored(scores, ended, rule, -1.5), expected, rtol=1e-6)


def test_rows_are_aligned_by_lengths_and_never_by_ids():
    end = 0  # the id that padding has, too
    prompts = np.asarray([[9, 9, 5, 0], [1, 2, 3, 4]], np.int32)  # the first has two tokens, 5 and 0
    chosen = np.asarray([[7, 0, -1], [8, 0, 6]], np.int32)
    found = left_aligned(prompts, np.asarray([2, 0], np.int32), chosen, (end,))
    np.testing.assert_array_equal(found.tokens, [[5, 0, 7, 0, 0, 0, 0], [1, 2, 3, 4, 8, 0, 6]])
    np.testing.assert_array_equal(found.targets, [[0, 7, 0, 0, 0, 0, 0], [2, 3, 4, 8, 0, 6, 0]])
    np.testing.assert_array_equal(found.mask, [[0, 1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 0]])
    np.testing.assert_array_equal(found.lengths, [4, 7])
    np.testing.assert_array_equal(found.ended, [True, False])
