"""The fitter against fits that others published, on their own runs."""

import csv
import json
from collections import defaultdict

import numpy as np
import pytest

from scaling.laws import forms
from scaling.laws.fit import fit_law, predict_log_loss
from scaling.laws.isoflop import isoflop
from scaling.laws.points import Points
from tests.shared import SHARED, needs_shared

DATA = SHARED / "data/scaling"
FORM = forms.form("chinchilla")


def points(rows, **columns):
    names = tuple(str(i) for i in range(len(rows)))
    return Points(names, names, {q: np.array([float(row[c]) for row in rows]) for q, c in columns.items()})


# McLeish et al., arXiv 2502.06857: a, b, e, alpha, beta, objective.
GEMSTONES = {
    "all parameters": ("hot", 0, (5.36134, 15.41599, 0.762264, 0.292869, 0.712872), 0.0019816129),
    "without embeddings": ("hot", 50304, (5.04823, 14.70634, 0.763670, 0.280764, 0.679697), 0.0017466699),
    "cool end": ("cool_end", 0, (5.41972, 12.51390, 0.729786, 0.300273, 0.580241), 0.0019640865),
}


@pytest.mark.slow
@needs_shared("data/scaling/gemstones")
@pytest.mark.parametrize("name", GEMSTONES)
def test_gemstones(name):
    split, vocabulary, theta, objective = GEMSTONES[name]
    lines = (DATA / f"gemstones/wandb_df_for_fitting_{split}.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        row["counted"] = row["params_active_precise"] - vocabulary * row["width"]
    fit = fit_law(points(rows, params="counted", tokens="tokens", loss="final_loss"), "chinchilla", resamples=0)
    assert fit.objective == pytest.approx(objective, rel=1e-6)
    assert list(fit.theta.values()) == pytest.approx(theta, rel=1e-3)
    assert fit.starts_at_best > 0.3


# Porian et al., arXiv 2406.19146: exponents of N*(C) as counting, warm-up, decay and tuning are mended.
PORIAN_STEPS = (
    ("base", "long", "kaplan", "kaplan", "train"),
    ("base", "long", "kaplan", "standard", "val"),
    ("base", "short", "kaplan", "standard", "val"),
    ("base", "short", "chinchilla", "standard", "val"),
    ("tuned", "short", "const", "standard", "val"),
)
PORIAN = {
    "rw": (0.8353, 0.7065, 0.6020, 0.5715, 0.4969),
    "owt2": (0.8635, 0.6985, 0.6032, 0.5743, 0.5185),
}
PORIAN_NOISE = {"rw": 0.002, "owt2": 0.01}  # their measured spread between seeds, nats


@needs_shared("data/scaling/porian")
@pytest.mark.parametrize(
    ("curve", "noise", "within", "missed"),
    [
        ("akima", "theirs", 0.01, 0),
        ("akima", "default", 0.01, 0),
        ("parabola", "theirs", 0.025, 1),
        ("parabola", "default", 0.025, 0),
    ],
)
def test_porian(curve, noise, within, missed):
    """They interpolate (Akima), so a parabola need not give their exponents, but its intervals nearly all hold them."""
    outside = 0
    experiments = defaultdict(list)
    with (DATA / "porian/isoflop_points.csv").open() as file:
        for row in csv.DictReader(file):
            key = tuple(row[k] for k in ("dataset", "hparams", "warmup", "decay", "param_count", "split"))
            experiments[key].append(row)
    for data, exponents in PORIAN.items():
        for step, exponent in zip(PORIAN_STEPS, exponents, strict=True):
            found = points(experiments[data, *step], params="n", tokens="t", flops="flops", loss="loss")
            given = {"noise": PORIAN_NOISE[data]} if noise == "theirs" else {}
            fit = isoflop(found, curve=curve, **given)
            assert fit.theta["params_exponent"] == pytest.approx(exponent, abs=within), (data, step)
            low, high = fit.intervals["params_exponent"]
            outside += not low < exponent < high
    assert outside == missed


@needs_shared("data/scaling/overtraining_gadre")
def test_gadre():
    """Five small runs predict two large ones: least squares, equal exponents (arXiv 2403.08540, table 2)."""
    with (DATA / "overtraining_gadre/models_104.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file) if row["dataset"] == "rpj"}
    shapes = ("d=96_l=8_h=4", "d=512_l=8_h=4", "d=576_l=24_h=8", "d=1024_l=24_h=8")
    small = [rows[f"rpj-{shape}-1.0"] for shape in shapes] + [rows["rpj-d=96_l=8_h=4-16.0"]]
    columns = {"params": "N", "tokens": "D", "loss": "loss_c4_val"}
    # A delta far above every residual makes Huber's penalty least squares.
    fit = fit_law(points(small, **columns), "chinchilla", equal_exponents=True, error="loss", delta=1.0, resamples=0)
    large = points([rows["rpj-open_lm_1b-32.0"], rows["rpj-open_lm_7b-1.0"]], **columns)
    sizes = {quantity: np.log(large[quantity]) for quantity in fit.law.needs}
    predicted = np.exp(predict_log_loss(fit.law, np.array(list(fit.theta.values())), sizes))
    errors = 100 * np.abs(predicted / large["loss"] - 1)
    assert errors == pytest.approx([0.7103, 0.7320], abs=0.05)
    assert any("few" in sentence for sentence in fit.warnings)
