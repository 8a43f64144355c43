"""The ratio of compute at equal loss: its intervals hold the truth, and laws of different shape are told apart."""

import functools

import numpy as np
import pytest

from scaling.laws.points import Points
from scaling.laws.ratio import compare
from scaling.report.collect import frontier_of

BUDGETS = np.geomspace(2e10, 2e13, 7)
SIZES = np.array([0.35, 0.7, 1.4, 2.8])  # of the best size
NOISE = 0.005
A, B, E, ALPHA, BETA = 63.0, 17.2, 0.857, 0.508, 0.239


def ladder(worth=1.0, part=0.5, *, noise=NOISE, rng=None, budgets=BUDGETS, alpha=ALPHA, e=E):
    """4 sizes at each budget; a FLOP is ``worth`` so many of the baseline's, a ``part`` of it as parameters."""
    best = (alpha * A / (BETA * B)) ** (1 / (alpha + BETA)) * (budgets / 6) ** (BETA / (alpha + BETA))
    n = np.outer(best, SIZES).ravel()
    c = np.repeat(budgets, len(SIZES))
    d = c / (6 * n)
    loss = e + A / (n * worth**part) ** alpha + B / (d * worth ** (1 - part)) ** BETA
    if rng is not None:
        loss = loss * np.exp(noise * rng.standard_normal(len(loss)))
    names = tuple(f"run{i}" for i in range(len(n)))
    return frontier_of(Points(names, names, {"params": n, "tokens": d, "flops": c, "loss": loss}))


def frontier(worth=1.0, *, alpha=0.16, e=0.8, rng=None):
    """Runs exactly on L = E + A C^-alpha, with 2 nats at 1e11 FLOPs, or around it."""
    loss = e + (2 - e) * (worth * BUDGETS / 1e11) ** -alpha
    if rng is not None:
        loss = loss * np.exp(0.003 * rng.standard_normal(len(loss)))
    names = tuple(f"run{i}" for i in range(len(loss)))
    return Points(names, names, {"params": BUDGETS, "tokens": BUDGETS, "flops": BUDGETS, "loss": loss})


@functools.cache
def hundred(worth, part, noise, seed=0):
    rng = np.random.default_rng(seed)
    made = functools.partial(ladder, noise=noise, rng=rng)
    return tuple(compare([made(), made(worth, part)], "ab") for _ in range(100))


def held(intervals, truth):
    return sum(low < truth < high for _, low, high in intervals)


@pytest.mark.slow
@pytest.mark.parametrize(("worth", "part", "noise"), [(1.5, 0.5, 0.005), (2.5, 0.3, 0.005), (0.6, 0.7, 0.01)])
def test_intervals_hold_the_truth_in_93_of_100_ladders(worth, part, noise):
    found = hundred(worth, part, noise)
    assert held([each.shared[1].ratio for each in found], worth) >= 93
    named = [each.ratio(1, each.named_losses(1)) for each in found]
    every = np.concatenate([values.T for values in named])
    assert held(every, worth) >= 0.93 * len(every)
    assert sum(each.shared[1].contradicted for each in found) <= 15  # 5 are expected
    halves = [np.log(each.shared[1].ratio[2] / each.shared[1].ratio[0]) for each in found]
    assert np.mean(halves) < 20 * noise  # they are of use
    centre = np.median([each.shared[1].ratio[0] for each in found])
    assert abs(np.log(centre / worth)) < 2 * noise


def test_without_noise_the_ratio_is_exact():
    found = compare([frontier(), frontier(1.7)], "ab")
    np.testing.assert_allclose(found.shared[1].ratio, 1.7, rtol=1e-4)
    np.testing.assert_allclose(found.ratio(1, found.named_losses(1)), 1.7, rtol=1e-4)
    assert not found.shared[1].contradicted
    e, a, alpha = found.law(0)
    np.testing.assert_allclose([e, a, *alpha], [0.8, 1.2 * 1e11**0.16, 0.16, 0.16, 0.16], rtol=1e-3)


def test_the_other_way_around_the_ratio_is_its_inverse():
    first, second = (ladder(worth, rng=np.random.default_rng(6)) for worth in (1.0, 1.7))
    found, turned = (compare(each, "ab").shared[1] for each in ((first, second), (second, first)))
    np.testing.assert_allclose(turned.ratio, 1 / found.ratio[[0, 2, 1]], rtol=1e-4)
    assert turned.p_value == pytest.approx(found.p_value, rel=1e-3)


def test_sizes_a_factor_of_two_apart_move_the_ratio_by_four_percent_at_most():
    """The best size lies between those trained, and not at the same place in both ladders."""
    for worth, part in ((1.5, 0.5), (2.5, 0.3), (1.7, 0.8)):
        found = compare([ladder(), ladder(worth, part)], "ab")
        assert found.shared[1].ratio[0] == pytest.approx(worth, rel=0.04)


def test_laws_agree_with_their_inverse_and_bands_hold_them():
    found = compare([ladder(rng=np.random.default_rng(1)), ladder(2.0, rng=np.random.default_rng(2))], "ab")
    flops = np.geomspace(1e11, 1e13, 5)
    for i in range(2):
        middle, low, high = found.loss(i, flops)
        np.testing.assert_allclose(found.flops(i, middle), flops, rtol=1e-9)
        assert np.all((low < middle) & (middle < high))
    losses = found.named_losses(1)
    low, high = found.common_losses(1)
    assert len(losses) >= 3 and np.all((low <= losses) & (losses <= high)) and np.all(np.diff(losses) < 0)
    np.testing.assert_allclose(found.ratio(1, losses)[0], found.flops(0, losses) / found.flops(1, losses), rtol=1e-9)


def test_another_shape_contradicts_one_ratio():
    rng = np.random.default_rng(3)
    found = compare([frontier(rng=rng), frontier(alpha=0.22, rng=rng)], "ab")
    assert found.shared[1].contradicted
    low, high = found.common_losses(1)
    at_high, at_low = found.ratio(1, np.array([high, low]))[0]
    assert at_high < 1 < 1.5 < at_low  # the laws cross
    assert not compare([frontier(rng=rng), frontier(1.5, rng=rng)], "ab").shared[1].contradicted


def test_a_ladder_without_irreducible_loss():
    rng = np.random.default_rng(4)
    found = compare([ladder(e=0.0, rng=rng), ladder(1.6, e=0.0, rng=rng)], "ab")
    value, low, high = found.shared[1].ratio
    assert low < 1.6 < high and high / low < 1.3 and value == pytest.approx(1.6, rel=0.1)
    assert np.all(np.isfinite(found.ratio(1, found.named_losses(1))))


def test_several_ladders_have_one_baseline():
    rng = np.random.default_rng(5)
    found = compare([ladder(worth, rng=rng) for worth in (1.0, 1.5, 3.0)], "abc")
    assert found.shared[0] is None
    for i, worth in ((1, 1.5), (2, 3.0)):
        assert found.shared[i].ratio[0] == pytest.approx(worth, rel=0.15)


def test_ladders_that_cannot_be_compared():
    with pytest.raises(ValueError, match=r"frontier of few has 3 runs.*at least 4"):
        compare([ladder(), ladder(budgets=BUDGETS[:3])], ["all", "few"])
    far = ladder(budgets=BUDGETS * 1e5)
    with pytest.raises(ValueError, match=r"no common range of loss, near from .* and far from "):
        compare([ladder(), far], ["near", "far"])
    # A loss that one law never reaches has no ratio.
    found = compare([ladder(), ladder(1.5)], "ab")
    assert np.isnan(found.ratio(1, np.array([0.5 * E]))).all()
