"""Compute-optimal runs found without a law of loss."""

import dataclasses

import numpy as np
import pytest

from scaling.laws.frontier import envelope, isoflop
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
    outside = points["params"] > 0.9 * np.sqrt(points["flops"] / 6)
    first = points["flops"] < 2e18
    fit = isoflop(points.take(~first | outside), noise=1e-4)
    assert len(fit.optima) == 4
    assert "budget 1e+18 FLOPs: the minimum is not inside the data, the smallest size" in fit.left_out[0]
    with pytest.raises(ValueError, match="only 0 isoFLOP curves have their minimum inside"):
        isoflop(isoflop_points(center=100.0))
    with pytest.raises(ValueError, match="sizes are too few"):
        isoflop(points.take(np.arange(len(points)) % 9 < 3))


def test_envelope_finds_the_exponents():
    fit = envelope(curves(), resamples=100)
    assert fit.theta["params_exponent"] == pytest.approx(0.5, abs=0.03)
    low, high = fit.intervals["params_exponent"]
    assert low < 0.5 < high
    assert fit.held_out["loss"]["error_percent"] == pytest.approx(0, abs=3)


def test_envelope_needs_curves():
    points = curves()
    single = dataclasses.replace(points, runs=tuple(str(i) for i in range(len(points))))
    with pytest.raises(ValueError, match="0 runs have several points"):
        envelope(single)
    with pytest.raises(ValueError, match="touches 1 sizes between"):
        envelope(points.take(points["params"] > 2e8))
