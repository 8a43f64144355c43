"""The committed records of a real ladder give the figures that its page states."""

from pathlib import Path

import numpy as np
import pytest

from scaling.laws.isoflop import isoflop
from scaling.laws.points import read_table
from scaling.laws.runs import read_runs

FOLDER = Path(__file__).resolve().parents[2] / "docs/results/cpu_ladder"


@pytest.fixture(scope="module")
def points():
    return read_runs([FOLDER / "runs"])


def test_sizes_and_compute_span_orders_of_magnitude(points):
    assert len(points) == 29 and not points.left_out
    assert points["params"].max() / points["params"].min() > 100
    assert points["flops"].max() / points["flops"].min() > 1000


def test_the_table_holds_the_same_points(points):
    table = read_table(FOLDER / "points.csv", {}, run="run")
    found = dict(zip(table.runs, zip(table["params"], table["loss"], strict=True), strict=True))
    for name, n, loss in zip(points.names, points["params"], points["loss"], strict=True):
        assert found[Path(name).name] == pytest.approx((n, loss), rel=1e-8)


@pytest.mark.parametrize(("curve", "params", "tokens"), [("parabola", 0.444, 0.565), ("akima", 0.497, 0.513)])
def test_isoflop_exponents(points, curve, params, tokens):
    fit = isoflop(points, curve=curve, resamples=300)
    assert fit.theta["params_exponent"] == pytest.approx(params, abs=0.01)
    assert fit.theta["tokens_exponent"] == pytest.approx(tokens, abs=0.01)
    low, high = fit.intervals["params_exponent"]
    assert 0.3 < low < 0.444 < 0.497 < high < 0.6


@pytest.mark.slow
def test_the_largest_run_is_predicted_from_the_others(points):
    from scaling.laws.fit import fit_law

    held_out = fit_law(points, "chinchilla", resamples=0).held_out
    assert Path(held_out["name"]).name == "l4-d192-t5.34m"
    assert held_out["observed"] == points["loss"][np.argmax(points["flops"])]
    assert abs(held_out["error_percent"]) < 0.5
