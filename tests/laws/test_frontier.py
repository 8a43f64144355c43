"""Compute-optimal runs found without a law of loss."""

import dataclasses

import numpy as np
import pytest

from scaling.laws.frontier import envelope
from scaling.laws.isocurves import isoflop_curves
from scaling.laws.isoflop import isoflop
from scaling.laws.points import Points

E, A, B, EXPONENT = 1.7, 400.0, 400.0, 0.34  # equal exponents: N* and D* grow as C^0.5


def loss(params, tokens):
    return E + A / params**EXPONENT + B / tokens**EXPONENT


def isoflop_points(budgets=5, center=1.0):
    c = np.repeat(1e18 * 4.0 ** np.arange(budgets), 9)
    n = np.tile(np.geomspace(0.1, 10, 9), budgets) * np.sqrt(c / 6) * center
    names = tuple(f"run{i}" for i in range(len(n)))
    return Points(names, names, {"params": n, "flops": c, "loss": loss(n, c / (6 * n))})


def curves():
    n = np.repeat(np.geomspace(1e7, 1e9, 9), 200)
    d = np.tile(np.geomspace(1e8, 1e11, 200), 9)
    names = tuple(f"{size:.0f}" for size in n)
    return Points(names, names, {"params": n, "tokens": d, "loss": loss(n, d)})


def test_isoflop_finds_the_exponents():
    fit = isoflop(isoflop_points(), noise=0.001)
    assert fit.theta["params_exponent"] == pytest.approx(0.5, abs=0.01)
    assert fit.theta["tokens_exponent"] == pytest.approx(0.5, abs=0.01)
    low, high = fit.intervals["params_exponent"]
    assert low < 0.5 < high
    assert [optimum["flops"] for optimum in fit.optima] == pytest.approx(list(1e18 * 4.0 ** np.arange(5)))
    assert fit.held_out["params"]["error_percent"] == pytest.approx(0, abs=5)


def test_isoflop_minimum_must_lie_inside_the_data():
    points = isoflop_points()
    outside = points["params"] > 1.1 * np.sqrt(points["flops"] / 6)
    first = points["flops"] < 2e18
    fit = isoflop(points.take(~first | outside), noise=1e-4)
    assert len(fit.optima) == 4
    assert "budget 1e+18 FLOPs: the minimum is not inside the data, the smallest size" in fit.left_out[0]
    with pytest.raises(ValueError, match="0 isoFLOP curves"):
        isoflop(isoflop_points(center=100.0))
    with pytest.raises(ValueError, match=r"sizes .*few"):
        isoflop(points.take(np.arange(len(points)) % 9 < 3))


def changed(points, *, params=None, loss=None, flops=None):
    """The points with other columns, of any length."""
    columns = {"params": params, "flops": flops, "loss": loss}
    columns = {name: points[name] if values is None else values for name, values in columns.items()}
    names = tuple(f"run{i}" for i in range(len(columns["loss"])))
    return Points(names, names, columns)


def replicates(points, seeds=3, apart=0.0, spread=0.01, seed=0):
    """Every run with several seeds, sizes ``apart`` by that part, losses by ``spread`` nats."""
    rng = np.random.default_rng(seed)
    n, c, losses = (np.repeat(points[quantity], seeds) for quantity in ("params", "flops", "loss"))
    n = n * (1 + apart * rng.uniform(-0.5, 0.5, len(n)))
    return changed(points, params=n, flops=c, loss=losses + spread * rng.standard_normal(len(n)))


def with_outliers(points, times=10.3, height=2.0):
    """In every budget one run more: so many times the size of one, and so many times its loss."""
    index = 9 * np.arange(5) + [1, 2, 4, 6, 8]
    more = {"params": times * points["params"][index], "flops": points["flops"][index]}
    more["loss"] = height * points["loss"][index]
    return changed(points, **{name: np.concatenate([points[name], values]) for name, values in more.items()})


@pytest.mark.parametrize("curve", ["parabola", "akima"])
@pytest.mark.parametrize(
    ("points", "within"),
    [
        (replicates(isoflop_points()), 0.03),
        (replicates(isoflop_points(), apart=0.003), 0.03),
        (changed(isoflop_points(), loss=isoflop_points()["loss"].round(2)), 0.02),
        (with_outliers(isoflop_points()), 0.01),
        (with_outliers(isoflop_points(), times=10**1.25), 0.01),
        (with_outliers(isoflop_points(), times=10**-0.25), 0.01),  # the sizes of other runs
    ],
)
def test_minima_of_runs_as_they_are_published(points, within, curve):
    """Repeated and nearly equal sizes, rounded losses, outliers: only the parabola promises to find the exponents."""
    fit = isoflop(points, curve=curve, resamples=200)
    for optimum in fit.optima:
        of_budget = points["loss"][np.isclose(points["flops"], optimum["flops"])]
        assert of_budget.min() <= optimum["loss"] <= of_budget.max()
    assert -0.12 < fit.theta["loss_exponent"] < -0.03
    if curve == "parabola":
        assert len(fit.optima) == 5
        assert fit.theta["params_exponent"] == pytest.approx(0.5, abs=within)
        low, high = fit.intervals["params_exponent"]
        assert low < 0.5 < high and high - low < 0.2


def test_a_far_outlier_does_not_move_the_minimum():
    clean = [o["params"] for o in isoflop(isoflop_points(), noise=0.001).optima]
    fit = isoflop(with_outliers(isoflop_points(), times=10**1.25), noise=0.001)
    assert [o["params"] for o in fit.optima] == pytest.approx(clean, rel=1e-6)
    near = isoflop(with_outliers(isoflop_points(), times=1.1, height=1.5), noise=0.001)
    assert [o["params"] for o in near.optima] == pytest.approx(clean, rel=0.02)
    states = [size["state"] for size in near.curves[2]["sizes"]]
    assert states.count("outlier") == 1
    assert near.outliers[1].startswith("budget 1.6e+19 FLOPs: run47, ")


def test_minima_of_noise_are_within_their_losses():
    """Near-equal sizes that are not merged make an interpolation swing; no noisy curve may leave its losses."""
    points = replicates(isoflop_points(), apart=0.003, spread=0.03)
    for kind in ("parabola", "akima"):
        for curve in isoflop_curves(points, curve=kind, same_size=0).curves:
            least = np.exp(curve.noisy[:, 2])
            there = np.isfinite(least)
            kept = curve.noisy_loss[curve.fitted][:, there]
            assert np.all(least[there] > kept.min(axis=0) * (1 - 1e-12))
            assert np.all(least[there] < kept.max(axis=0) * (1 + 1e-12))


def test_near_sizes_are_one_and_their_spread_is_the_noise():
    points = replicates(isoflop_points(), apart=0.003)
    found = isoflop_curves(points)
    assert [len(curve.x) for curve in found.curves] == [9] * 5
    assert found.curves[0].runs.tolist() == [3] * 9
    assert found.curves[0].loss[0] == pytest.approx(points["loss"][:3].mean())
    assert found.noise == pytest.approx(0.01, rel=0.2)
    assert isoflop_curves(points, noise=0.02).noise == 0.02
    apart = isoflop_curves(points, same_size=0)
    assert len(apart.curves[0].x) == 27 and apart.noise == 0.005
    copies = changed(points, **{name: np.tile(isoflop_points()[name], 2) for name in ("params", "flops", "loss")})
    assert isoflop_curves(copies).noise == 0.005  # copies are no second runs
    assert isoflop_curves(with_outliers(isoflop_points(), times=10**-0.25)).noise == 0.005  # nor are outliers


@pytest.mark.parametrize(
    "options", [{"curve": "cubic"}, {"same_size": -0.1}, {"same_size": 1}, {"noise": 0}, {"noise": np.nan}]
)
def test_isoflop_options_that_cannot_be(options):
    with pytest.raises(ValueError, match=f"--{next(iter(options))}="):
        isoflop(isoflop_points(), **options)


@pytest.mark.parametrize("curve", ["parabola", "akima"])
@pytest.mark.parametrize("same_size", [0.0, 0.02])
def test_sizes_that_differ_by_rounding(curve, same_size):
    points = isoflop_points()
    more = changed(points, params=points["params"] * (1 + 2e-16), loss=points["loss"] + 1e-3)
    both = {name: np.concatenate([points[name], more[name]]) for name in ("params", "flops", "loss")}
    fit = isoflop(changed(points, **both), curve=curve, same_size=same_size, resamples=0)
    assert fit.theta["params_exponent"] == pytest.approx(0.5, abs=0.02)
    assert [size["runs"] for size in fit.curves[0]["sizes"]] == [2] * 9


def test_noise_that_hides_the_bend_of_the_nearest_sizes():
    """Digitised losses: the five smallest sizes are concave, so more sizes count, and the minimum is found."""
    loss = np.array([2.12, 2.10, 2.09, 2.09, 2.0667, 2.09, 2.10, 2.11, 2.13, 4.1])
    x = np.append(np.linspace(-1.6, 1.6, 9), 2.4)
    points = changed(isoflop_points(), params=np.exp(x + 20), loss=loss, flops=np.full(len(x), 1e20))
    (curve,) = isoflop_curves(points, noise=0.01).curves
    assert curve.reason == "" and abs(curve.minimum[0] - 20) < 0.3
    assert not curve.fitted[-1]  # twice the loss of all others


def test_a_budget_without_a_minimum_says_which_end_is_best_only_if_it_is():
    points = isoflop_points()
    first = points["flops"] < 2e18
    points = points.take(first)
    rising = changed(points, loss=np.sort(points["loss"]))
    assert "smallest size" in isoflop_curves(rising).curves[0].reason
    assert "largest size" in isoflop_curves(changed(points, loss=np.sort(points["loss"])[::-1])).curves[0].reason
    flat = isoflop_curves(
        changed(points, loss=2.5 - 0.01 * (points["params"] == np.median(points["params"]))), noise=1.0
    )
    assert "not inside" in flat.curves[0].reason and "best" not in flat.curves[0].reason


def test_more_outliers_than_a_curve_can_tell():
    """Of five sizes two are off, and the other three are no curve: none is named as an outlier."""
    x = np.array([-1.8, -1.7, -0.5, -0.5, 1.1, 1.2, 1.2])
    columns = {"params": np.exp(x + 20), "loss": np.array([2.324, 3.434, 2.025, 2.008, 3.182, 2.144, 2.14])}
    points = changed(isoflop_points(), **columns, flops=np.full(len(x), 1e20))
    (curve,) = isoflop_curves(points).curves
    assert curve.outliers == () and curve.runs.tolist() == [1, 1, 2, 1, 2]


@pytest.mark.parametrize("curve", ["parabola", "akima"])
def test_sizes_far_from_the_minimum_of_their_curve_have_none(curve):
    """Two small sizes and four large ones: their curve has its minimum in the gap, far below every loss."""
    points = isoflop_points()
    gap = np.abs(np.log(points["params"] / np.sqrt(points["flops"] / 6))) < 1.5
    first = points["flops"] < 2e18
    points = points.take(~(first & gap))
    steep = np.where(points["flops"] < 2e18, 3 * (points["loss"] - 2.6) + 2.6, points["loss"])
    fit = isoflop(changed(points, loss=steep), curve=curve, resamples=0)
    assert len(fit.optima) == 4
    assert fit.left_out[0].startswith("budget 1e+18 FLOPs: no size is near")


def test_intervals_hold_the_truth():
    """40 ladders of three seeds a size, sizes a little apart; the spread of the fits is within the intervals, too."""
    clean, found, held = isoflop_points(), [], 0
    for seed in range(40):
        fit = isoflop(replicates(clean, apart=0.003, seed=seed), resamples=100)
        low, high = fit.intervals["params_exponent"]
        found.append(fit.theta["params_exponent"])
        held += low < 0.5 < high
    assert held >= 38
    error = np.std(found) / len(found) ** 0.5
    assert np.mean(found) == pytest.approx(0.5, abs=3 * error) and error < 0.005


@pytest.mark.parametrize("fit", [isoflop, lambda points, **options: envelope(curves(), **options)])
def test_without_resamples_there_are_no_intervals(fit):
    without, with_intervals = fit(isoflop_points(), resamples=0), fit(isoflop_points(), resamples=5)
    assert without.intervals == {} and without.draws == ()
    assert without.theta == with_intervals.theta


def test_envelope_finds_the_exponents():
    fit = envelope(curves(), resamples=100)
    assert fit.theta["params_exponent"] == pytest.approx(0.5, abs=0.03)
    low, high = fit.intervals["params_exponent"]
    assert low < 0.5 < high
    assert fit.held_out["loss"]["error_percent"] == pytest.approx(0, abs=3)


def test_envelope_needs_curves():
    points = curves()
    single = dataclasses.replace(points, runs=tuple(str(i) for i in range(len(points))))
    with pytest.raises(ValueError, match="0 runs "):
        envelope(single)
    with pytest.raises(ValueError, match=" 1 sizes "):
        envelope(points.take(points["params"] > 2e8))
