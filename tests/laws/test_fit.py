"""The fitter on runs of known laws, and what it says of runs that tell too little."""

import dataclasses
import json

import numpy as np
import pytest

from scaling.laws import forms, solver
from scaling.laws.fit import _Problem, fit_law, predict_log_loss
from scaling.laws.points import Points
from scaling.laws.predict import predict

CHINCHILLA = np.array([6.0, 7.0, 0.55, 0.34, 0.37])
FEW_STARTS = np.array([[5, 5, 0, 0.5, 0.5], [10, 10, 0, 0.5, 0.5], [5, 10, 0.5, 0.5, 0.5], [10, 5, 0.5, 0.5, 0.5]])


def grid(params=8, tokens=12, **columns):
    """A grid of sizes and lengths, without a loss."""
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 3e9, params), np.geomspace(3e8, 1e11, tokens)))
    names = tuple(f"run{i}" for i in range(len(n)))
    return Points(names, names, {"params": n, "tokens": d, **columns})


def with_loss(points, law, theta, noise=0.0, seed=0):
    sizes = {quantity: np.log(points[quantity]) for quantity in law.needs}
    log_loss = predict_log_loss(law, theta, sizes)
    log_loss = log_loss + noise * np.random.default_rng(seed).standard_normal(len(points))
    return dataclasses.replace(points, columns={**points.columns, "loss": np.exp(log_loss)})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "theta"),
    [
        ("power", {"against": "flops"}, [5.0, 0.12, 0.4]),
        ("power", {"against": "params", "irreducible": False}, [2.4, 0.076]),
        ("kaplan", {}, [32.0, 31.5, 0.076, 0.095]),
        ("chinchilla", {"equal_exponents": True}, [6.0, 6.5, 0.55, 0.34]),
    ],
)
def test_exact_losses_give_the_law_back(name, options, theta):
    law = forms.form(name, **options)
    points = with_loss(grid(6, 6), law, theta)
    fit = fit_law(points, name, resamples=20, **options)
    assert list(fit.theta.values()) == pytest.approx(theta, rel=1e-4)
    sizes = {quantity: points[quantity] for quantity in law.needs}
    assert fit.loss(**sizes) == pytest.approx(points["loss"], rel=1e-5)
    with pytest.raises(ValueError, match="unique"):
        fit.loss(**sizes, unique=1e9)
    one = {quantity: values[0] for quantity, values in sizes.items()}
    assert predict(fit, **one) == predict(json.loads(fit.to_json()), **one)
    assert fit.held_out["error_percent"] == pytest.approx(0, abs=1e-3)
    assert fit.outliers == ()


@pytest.mark.slow
def test_repeated_data_is_worth_less():
    law = forms.form("data_constrained")
    theta = [6.0, 7.0, 0.55, 0.34, 0.37, np.log(5.31), np.log(15.39)]
    points = grid(6, 8)
    unique = np.where(np.arange(len(points)) % 2, 3e8, points["tokens"])
    points = with_loss(dataclasses.replace(points, columns={**points.columns, "unique": unique}), law, theta)
    fit = fit_law(points, "data_constrained", resamples=0)
    assert list(fit.theta.values()) == pytest.approx(theta, rel=1e-3)
    with pytest.raises(ValueError, match="more than once"):
        once = dataclasses.replace(points, columns={**points.columns, "unique": points["tokens"]})
        fit_law(once, "data_constrained")


@pytest.mark.slow
def test_intervals_hold_the_truth():
    """95 % intervals of 100 noisy ladders hold each true parameter in at least 90 of them."""
    law, points = forms.form("chinchilla"), grid()
    inside = np.zeros(len(CHINCHILLA))
    for trial in range(100):
        noisy = with_loss(points, law, CHINCHILLA, noise=0.005, seed=trial)
        fit = fit_law(noisy, "chinchilla", resamples=200, starts=FEW_STARTS, seed=trial)
        low, high = np.array(list(fit.intervals.values())).T
        inside += (low <= CHINCHILLA) & (high >= CHINCHILLA)
    assert np.all(inside >= 90), dict(zip(law.names, inside, strict=True))


@pytest.mark.slow
def test_outliers_are_named_and_dropped_only_when_asked():
    points = with_loss(grid(), forms.form("chinchilla"), CHINCHILLA, noise=0.003)
    points.columns["loss"][17] *= 1.3
    kept = fit_law(points, "chinchilla", resamples=0, starts=FEW_STARTS)
    dropped = fit_law(points, "chinchilla", resamples=0, starts=FEW_STARTS, drop_outliers=True)
    assert any(name.startswith("run17 (+") for name in kept.outliers)
    assert (kept.num_points, kept.outliers_dropped) == (96, False)
    assert dropped.outliers == kept.outliers
    assert (dropped.num_points, dropped.outliers_dropped) == (96 - len(kept.outliers), True)


@pytest.mark.slow
def test_dropping_outliers_keeps_the_error():
    points = with_loss(grid(8, 6), forms.form("power"), [5.0, 0.12, 0.4], noise=0.003)
    points.columns["loss"][17] *= 1.3
    starts = np.array([[5.0, 0.1, 0.5]])
    fit = fit_law(points, "power", error="loss", delta=1.0, resamples=0, starts=starts, drop_outliers=True)
    assert (fit.error, fit.outliers_dropped) == ("loss", True)


def test_an_exact_fit_is_not_flat():
    """Nothing is a part of an objective of 0; a rise from it is not -100 %."""
    law, theta = forms.form("power", against="params"), np.array([5.0, 0.12, 0.4])
    problem = _Problem(law, with_loss(grid(6, 2), law, theta), 1e-3, "log")
    assert set(problem._profile(theta, 0.0).values()) == {np.inf}


def test_points_of_one_run_are_resampled_together():
    points = with_loss(grid(), forms.form("chinchilla"), CHINCHILLA, noise=0.005)
    correlated = dataclasses.replace(points, runs=tuple(f"{size:.0f}" for size in points["params"]))
    fit = fit_law(correlated, "chinchilla", resamples=50, starts=FEW_STARTS)
    assert "8 runs are few" in " ".join(fit.warnings)


def test_flat_optimum_is_reported():
    """Runs of nearly the same length say nothing of the exponent of tokens."""
    points = grid(12, 6)
    points.columns["tokens"][:] = 1e10 * (1 + 0.01 * np.log10(points["tokens"] / 3e8))
    noisy = with_loss(points, forms.form("chinchilla"), CHINCHILLA, noise=0.01)
    fit = fit_law(noisy, "chinchilla", resamples=0, starts=FEW_STARTS)
    assert any("flat: beta" in sentence or "disagree" in sentence for sentence in fit.warnings)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (grid(1, 12), "only 1 value of params"),
        (grid(2, 12), "only 2 values of params"),
        (grid(2, 2), "4 points .*5 parameters"),
    ],
)
def test_what_cannot_be_told_is_refused(points, message):
    with pytest.raises(ValueError, match=message):
        fit_law(with_loss(points, forms.form("chinchilla"), CHINCHILLA), "chinchilla")


def test_impossible_options_are_refused():
    points = with_loss(grid(), forms.form("chinchilla"), CHINCHILLA)
    with pytest.raises(ValueError, match="--delta=0"):
        fit_law(points, "chinchilla", delta=0)
    with pytest.raises(ValueError, match="--error=square"):
        fit_law(points, "chinchilla", error="square")
    with pytest.raises(ValueError, match="--form=cubic"):
        fit_law(points, "cubic")


def test_solver_finds_the_median_far_outside_delta():
    """With delta far below the residuals, the best constant is the median; weights and fixed parameters are kept."""

    observed = np.array([0.0, 1.0, 2.0, 3.0, 100.0])
    starts = np.array([[50.0, 7.0], [-3.0, 7.0]])
    free = np.array([[1.0, 0.0], [1.0, 0.0]])
    found = solver.minimise(_constant, starts, {}, observed, delta=1e-3, free=free)
    assert found.theta[:, 0] == pytest.approx(2.0, abs=2e-3)
    assert found.theta[:, 1] == pytest.approx(7.0, abs=0)
    weighted = solver.minimise(
        _constant, starts, {}, observed, delta=1e-3, weights=np.array([9.0, 1, 1, 1, 1]), free=free
    )
    assert weighted.theta[:, 0] == pytest.approx(0.0, abs=2e-3)


def _constant(theta, sizes):
    return theta[0] + 0 * theta[1] + np.zeros(5)
