"""Predictions against the closed form of the compute-optimal run (arXiv 2203.15556, equation 4)."""

import json

import numpy as np
import pytest

from scaling.laws.predict import predict

THETA = {"a": 6.0, "b": 7.0, "e": 0.55, "alpha": 0.34, "beta": 0.37}
WIDER = [[*THETA.values()], [6.1, 7.0, 0.55, 0.34, 0.37], [5.9, 7.0, 0.55, 0.34, 0.37]]
FIT = {"form": "chinchilla", "options": {}, "theta": THETA, "draws": WIDER}


def optimum(c):
    a, b, _, alpha, beta = THETA.values()
    g = (alpha * np.exp(a) / (beta * np.exp(b))) ** (1 / (alpha + beta))
    n = g * (c / 6) ** (beta / (alpha + beta))
    return n, c / 6 / n


def loss(n, d):
    a, b, e, alpha, beta = THETA.values()
    return np.exp(e) + np.exp(a) / n**alpha + np.exp(b) / d**beta


def test_optimum_of_a_budget():
    found = predict(FIT, flops=1e21)
    n, d = optimum(1e21)
    assert found["params"]["value"] == pytest.approx(n, rel=1e-6)
    assert found["tokens"]["value"] == pytest.approx(d, rel=1e-6)
    assert found["loss"]["value"] == pytest.approx(loss(n, d), rel=1e-9)
    assert found["params"]["low"] < n < found["params"]["high"]
    assert found["flops"] == {"value": 1e21, "low": 1e21, "high": 1e21}


def test_optimum_of_a_size_or_a_length():
    n, d = optimum(1e21)
    assert predict(FIT, params=n)["tokens"]["value"] == pytest.approx(d, rel=1e-6)
    assert predict(FIT, tokens=d)["params"]["value"] == pytest.approx(n, rel=1e-6)


def test_two_sizes_give_the_loss():
    assert predict(FIT, params=1e9, tokens=1e10)["loss"]["value"] == pytest.approx(loss(1e9, 1e10))
    assert predict(FIT, params=1e9, flops=6e19)["loss"]["value"] == pytest.approx(loss(1e9, 1e10))
    assert "overtrained" not in predict(FIT, params=1e9, tokens=1e10)


def test_overtrained_models_reach_the_loss_at_a_price():
    found = predict(FIT, flops=1e21)
    half, *_, eighth = found["overtrained"]
    assert half["params"] == pytest.approx(found["params"]["value"] / 2)
    assert loss(half["params"], half["tokens"]) == pytest.approx(found["loss"]["value"], rel=1e-6)
    assert half["flops_ratio"] == pytest.approx(6 * half["params"] * half["tokens"] / 1e21)
    assert half["flops_ratio"] > 1
    assert eighth["tokens"] is None  # its loss stays above for ever
    json.dumps(found)


def test_power_and_frontier():
    power = {
        "form": "power",
        "options": {"against": "params", "irreducible": False},
        "theta": {"a": 2.4, "alpha": 0.076},
    }
    found = predict({**power, "draws": []}, params=1e9)
    assert found["loss"]["value"] == pytest.approx(np.exp(2.4 - 0.076 * np.log(1e9)))
    frontier = {
        "form": "isoflop",
        "theta": dict(zip("abcdef", (-2.0, 0.5, 0.2, 0.5, 3.0, -0.05), strict=True)),
        "draws": [],
    }
    assert predict(frontier, flops=1e20)["params"]["value"] == pytest.approx(np.exp(-2.0) * 1e10)
    with pytest.raises(ValueError, match="--flops alone"):
        predict(frontier, params=1e9)
    with pytest.raises(ValueError, match="--params alone"):
        predict({**power, "draws": []}, flops=1e20)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="--flops, --params, --tokens"):
        predict(FIT)
    with pytest.raises(ValueError, match=r"--flops=-1\.0 .*positive"):
        predict(FIT, flops=-1.0)
