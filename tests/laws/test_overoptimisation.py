"""Fits of over-optimisation against known coefficients, and the best of n against all subsets."""

import itertools

import numpy as np
import pytest

from scaling.laws.overoptimisation import FORMS, best_of_n, best_of_n_kl, fit, fit_over_points, fit_over_prompts

ALPHA, BETA = 0.7, 0.2
DISTANCE = np.sqrt([best_of_n_kl(n) for n in (1, 2, 4, 8, 16, 32, 64)])


def true(form, d):
    """The forms as the paper writes them, for d above 0."""
    return d * (ALPHA - BETA * (d if form == "best_of_n" else np.log(d)))


@pytest.mark.parametrize("form", FORMS)
def test_exact_points_give_their_coefficients(form):
    d = np.linspace(0.1, 6, 20)
    found = fit(form, np.append(d, 0.0), np.append(true(form, d), 0.0))
    assert (found.alpha, found.beta) == pytest.approx((ALPHA, BETA))
    np.testing.assert_allclose(found(np.append(d, 0.0)), np.append(true(form, d), 0.0), atol=1e-12)


def test_intervals_hold_the_truth_as_often_as_they_say():
    random, d = np.random.default_rng(0), np.linspace(0.3, 5, 30)
    hits = []
    for seed in range(60):
        noisy = true("rl", d) + random.normal(0, 0.1, len(d))
        found = fit_over_points("rl", d, noisy, resamples=200, seed=seed)
        hits.append(found.alpha_interval[0] <= ALPHA <= found.alpha_interval[1])
        prompts = true("best_of_n", DISTANCE[1:]) + random.normal(0, 1, (100, 1)) * DISTANCE[1:]
        found = fit_over_prompts("best_of_n", DISTANCE[1:], prompts, resamples=200, seed=seed)
        hits.append(found.alpha_interval[0] <= ALPHA <= found.alpha_interval[1])
        assert found.beta_interval == pytest.approx((BETA, BETA))  # the prompts differ in their slope alone
    assert 0.86 <= np.mean(hits) <= 0.99


def test_the_best_of_n_is_the_mean_over_all_subsets_also_with_ties():
    random = np.random.default_rng(1)
    reward = random.normal(size=(3, 7))
    different = random.permuted(np.tile(np.arange(7.0), (3, 1)), axis=1)
    for by in (different, random.integers(0, 4, (3, 7)).astype(float)):
        found = best_of_n(by, reward, range(1, 8))
        for row, n in itertools.product(range(3), range(1, 8)):
            best = []
            for subset in map(list, itertools.combinations(range(7), n)):
                top = by[row, subset] == by[row, subset].max()
                best.append(reward[row, subset][top].mean())
            assert found[row, n - 1] == pytest.approx(np.mean(best))


def test_the_divergence_of_one_answer_is_0_and_of_two_that_of_the_paper():
    assert best_of_n_kl(1) == 0 and best_of_n_kl(2) == pytest.approx(np.log(2) - 0.5)


def test_a_curve_needs_two_distances():
    with pytest.raises(ValueError, match="two or more distances"):
        fit("rl", [0.0, 1.0, 1.0], [0.0, 1.0, 1.1])
