"""The report: numbers on synthetic ladders, sections, refusals, and that the page needs nothing else."""

import html.parser
import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest

from scaling.catalog.flops import training_per_token
from scaling.catalog.sizes import parameters
from scaling.commands.report import write_report
from scaling.config import schema as cfg
from scaling.laws.isocurves import isoflop_curves
from scaling.laws.points import Points, read_table, require_independence
from scaling.report.collect import collect, frontier_of, short_names
from scaling.report.law_figures import isoflop_curves as isoflop_drawing
from scaling.report.records import write_points
from scaling.report.tables import configs, runs

ALPHA, BETA, E, A, B = 0.36, 0.32, 0.8, 40.0, 60.0
WIDTHS = (16, 32, 48, 64, 96, 128)
SECTIONS = ["summary", "compute", "sizes", "isoflop", "optimum", "residuals", "counts", "runs", "configs", "left_out"]


def model(width):
    shape = {"num_layers": 2, "d_model": width, "num_heads": width // 16, "d_head": 16, "d_ff": 4 * width}
    return cfg.Model(vocab_size=257, context_length=64, **shape)


def law(n, d):
    return E + A / n**ALPHA + B / d**BETA


def run(folder, name, width, tokens, *, stop=1.0, ends_in=None, evals=True, **data):
    """A run directory whose loss follows the law, up to the part ``stop`` of its steps."""
    tokens, batch = int(tokens), 1024
    config = cfg.to_dict(
        cfg.Config(
            workdir=f"runs/{name}",
            model=model(width),
            data=cfg.Data(tokenizer="bytes", **data),
            train=cfg.Train(tokens=tokens, batch_tokens=batch),
            optimizer=cfg.Optimizer(peak_lr=0.01 / width),
        )
    )
    path, n = folder / name, parameters(model(width)).total
    path.mkdir(parents=True)
    values = {"config": config, "versions": {"jax": "0.10.2"}, "devices": {"kind": "cpu", "count": 1}}
    (path / "config.json").write_text(json.dumps(values | {"flops_per_token": training_per_token(model(width))}))
    last = int(tokens // batch * stop)
    steps = np.unique(np.linspace(1, last, 40).astype(int))
    losses = [law(n, step * batch) for step in steps]
    if ends_in is not None:
        losses[-1] = ends_in
    records = [
        {"step": int(step), "tokens": int(step) * batch, "loss": loss, "seconds": float(step)}
        for step, loss in zip(steps, losses, strict=True)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (path / "evals.jsonl").write_text(json.dumps(records[-1]) + "\n" if evals and stop == 1 else "")


def sweep(folder):
    """4 budgets of 5 or 6 sizes around the optimum."""
    for budget in np.geomspace(1e12, 3e14, 4):
        for width in WIDTHS:
            run(folder, f"c{budget:.0e}-{width}".replace("+", ""), width, budget / training_per_token(model(width)))


class Page(html.parser.HTMLParser):
    """Anchors, images and every attribute that could fetch something."""

    def __init__(self, text):
        super().__init__()
        self.sections, self.images, self.tags, self.links = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        if tag == "section":
            self.sections.append(values["id"])
        if tag == "img":
            self.images.append(values)
        self.links += [values[key] for key in ("src", "href", "srcset", "action", "data") if key in values]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    sweep(folder)
    run(folder, "broken", 64, 1e6, stop=0.5, ends_in=math.nan)
    run(folder, "short<&>", 64, 1e6, stop=0.5)
    return write_report([folder], resamples=30)


@pytest.mark.slow
def test_page_and_figures(report):
    text = report.page.read_text()
    page = Page(text)
    assert page.sections == SECTIONS
    assert len(page.images) == 5
    assert all(image["src"].startswith("data:image/svg+xml;base64,") and image["alt"] for image in page.images)
    assert len(report.figures) == 10
    for path in report.figures:
        head = path.read_bytes()[:200]
        assert head.startswith(b"\x89PNG") if path.suffix == ".png" else b"<?xml" in head
    assert "short&lt;&amp;&gt;" in text and "short<&>" not in text


@pytest.mark.slow
def test_page_fetches_nothing(report):
    text = report.page.read_text()
    assert all(link.startswith(("#", "data:")) for link in Page(text).links)
    assert not re.search(r"https?://|url\(|@import|<script", text)
    assert "script" not in Page(text).tags


@pytest.mark.slow
def test_numbers(report):
    """The joint law is exact here, so its held-out budget is too, and its optimum is where the law says."""
    text = report.page.read_text()
    error = float(re.search(r"off by ([+-][\d.]+) %", " ".join(report.summary)).group(1))
    assert abs(error) < 0.05
    alpha, beta = (
        float(re.search(rf"<td>{name}</td><td class=\"n\">([\d.]+)", text).group(1)) for name in ("alpha", "beta")
    )
    assert (alpha, beta) == pytest.approx((ALPHA, BETA), rel=0.01)
    assert report.summary[0].startswith("L(C) = ")
    assert any("broken: diverged" in line for line in report.summary)
    assert any("short<&>: is not finished" in line for line in report.summary)


@pytest.mark.slow
def test_optimum_is_the_minimum_of_the_law(tmp_path):
    from scaling.laws.fit import fit_law
    from scaling.report.optimum import optimum

    sweep(tmp_path)
    points = collect([tmp_path]).points
    best = optimum(fit_law(points, "chinchilla", resamples=0), points)
    n, d, loss = best.at(np.array([1e14]))[0, :, 0]
    assert np.exp(best.log_k + best.g * n + d) == pytest.approx(1e14)
    around = n + np.linspace(-2, 2, 4001)
    along = law(np.exp(around), 1e14 / np.exp(best.log_k + best.g * around))
    assert n == pytest.approx(around[np.argmin(along)], abs=0.02)
    assert np.exp(loss) == pytest.approx(along.min(), rel=1e-4)
    assert best.exponents()[0, 0] == pytest.approx(BETA / (ALPHA + best.g * BETA), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[(32, 1e6)], [(32, 1e6), (32, 2e6), (32, 4e6)]])
def test_what_cannot_be_fitted_is_said(tmp_path, sizes):
    for i, (width, tokens) in enumerate(sizes):
        run(tmp_path, f"r{i}", width, tokens)
    page = write_report([tmp_path], tmp_path / "out", resamples=5).page.read_text()
    assert "There is no joint law L(N, D): " in page
    assert "No budget of FLOPs has several sizes." in page
    assert ("There is no L(C)" in page) == (len(sizes) == 1)
    assert ("have one size" in page) == (len(sizes) > 1)


@pytest.mark.slow
def test_ladder_is_predicted_by_compute_alone(tmp_path):
    """With D = 20 N a joint law fits and predicts nonsense; L(C) must be what the summary shows."""
    for width in WIDTHS:
        run(tmp_path, f"w{width}", width, 20 * parameters(model(width)).total)
    report = write_report([tmp_path], resamples=5)
    assert "L(C) fitted without the largest run: w128" in report.summary[1]
    assert abs(float(re.search(r"off by ([+-][\d.]+) %", report.summary[1]).group(1))) < 1
    assert "tokens follow the parameters, D = 20 N^1" in report.page.read_text()


def test_independence_of_size_and_tokens():
    n = np.geomspace(1e6, 1e9, 6)
    columns = {"params": n, "tokens": 20 * n, "loss": np.ones(6)}
    names = tuple("abcdef")
    with pytest.raises(ValueError, match=r"D = 20 N\^1 within 0\.0%"):
        require_independence(Points(names, names, columns))
    require_independence(Points(names, names, columns | {"tokens": 20 * n * np.array([1, 3, 1, 3, 1, 3])}))
    require_independence(Points(names, names, columns | {"tokens": np.full(6, 1e9)}))


def test_states_and_times(tmp_path):
    run(tmp_path, "good", 32, 1e6)
    run(tmp_path, "nan", 32, 1e6, stop=0.5, ends_in=math.nan)
    run(tmp_path, "half", 32, 1e6, stop=0.5)
    resumed = tmp_path / "good" / "metrics.jsonl"
    records = [json.loads(line) for line in resumed.read_text().splitlines()]
    for record in records[20:]:
        record["seconds"] -= records[19]["seconds"]  # a second attempt counts from its own start
    resumed.write_text("".join(json.dumps(record) + "\n" for record in records))
    ladder = collect([tmp_path])
    entries = {entry.name: entry for entry in ladder.entries}
    assert {name: entry.state for name, entry in entries.items()} == {
        "good": "finished",
        "nan": "diverged",
        "half": "unfinished",
    }
    assert entries["good"].seconds == records[19]["seconds"] + records[-1]["seconds"]
    assert entries["half"].reason.startswith("is not finished, ")
    assert ladder.curve_loss == "training"
    assert {curve.run: np.isfinite(curve.loss).all() for curve in ladder.curves} == dict.fromkeys(entries, True)


def test_odd_runs_are_listed_and_not_fitted(tmp_path):
    run(tmp_path, "good", 32, 1e6)
    run(tmp_path, "other", 48, 1e6)
    run(tmp_path, "good_copy", 32, 1e6)
    run(tmp_path, "zero", 32, 1e6, ends_in=0.0)
    run(tmp_path, "null", 32, 1e6)
    with (tmp_path / "null/metrics.jsonl").open("a") as file:
        file.write('{"loss": null, "seconds": null}\n')
    run(tmp_path, "failed", 64, 1e6)
    values = json.loads((tmp_path / "failed/config.json").read_text())
    (tmp_path / "failed/plan.json").write_text(json.dumps(values["config"]))
    for name in ("config.json", "metrics.jsonl", "evals.jsonl"):
        (tmp_path / "failed" / name).unlink()
    ladder = collect([tmp_path])
    assert {entry.name: entry.state for entry in ladder.entries} == {
        "good": "finished",
        "other": "finished",
        "good_copy": "copy",
        "zero": "damaged",
        "null": "damaged",
        "failed": "unfinished",
    }
    assert len(ladder.points) == 2
    assert set(ladder.curve_points().runs) == {"good", "other"}
    assert all((curve.loss > 0).all() for curve in ladder.curves)
    assert "is a copy of" in runs(ladder) and "loss is 0.0" in runs(ladder)
    different, _, same = configs(ladder).partition("<details>")
    assert "failed" not in different and "jax" in same


def test_frontier_is_the_best_of_each_budget_while_it_falls():
    names = tuple("abcde")
    flops, loss = np.array([1.0, 1.05, 10, 100, 1000]), np.array([3.0, 2.9, 2.5, 2.6, 2.0])
    columns = {"params": flops, "tokens": flops, "flops": flops, "loss": loss}
    assert frontier_of(Points(names, names, columns)).names == ("b", "c", "e")


def test_names_of_runs_here_and_in_stores():
    assert short_names(["gs://b/x/l1", "/runs/x/l2"]) == ["l1", "l2"]
    assert short_names(["gs://b/x/l1", "gs://b/y/l1"]) == ["x/l1", "y/l1"]
    assert short_names(["runs/x/l1", "./runs/y/l1"]) == ["x/l1", "y/l1"]
    here_and_there = ["gs://b/x/l1", "s3://b/x/l1", "/runs/x/l1", "runs/x/l1"]
    assert short_names(here_and_there) == here_and_there


def test_runs_of_one_name_are_told_apart(tmp_path):
    for folder, tokens in (("a", 1e6), ("b", 2e6)):
        run(tmp_path / folder, "same", 32, tokens)
    assert {entry.name for entry in collect([tmp_path / "a", tmp_path / "b"]).entries} == {"a/same", "b/same"}


@pytest.mark.parametrize("options", [{"resamples": 0}, {"count": "guessed"}, {"loss": "guessed"}])
def test_bad_options(tmp_path, options):
    run(tmp_path, "a", 32, 1e6)
    with pytest.raises(ValueError, match="must be"):
        write_report([tmp_path], **options)
    assert not (tmp_path / "report").exists()


def test_bad_input(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        write_report([tmp_path / "absent"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is not a run directory"):
        write_report([tmp_path / "empty"])
    run(tmp_path / "runs", "a", 32, 1e6)
    run(tmp_path / "other", "b", 32, 1e6, train="elsewhere")
    with pytest.raises(ValueError, match="--output=DIR"):
        write_report([tmp_path / "runs", tmp_path / "other"])
    with pytest.raises(ValueError, match="compared"):
        write_report([tmp_path / "runs", tmp_path / "other"], tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write_report([tmp_path / "runs"], tmp_path / "file")
    run(tmp_path / "unfinished", "c", 32, 1e6, stop=0.5)
    with pytest.raises(ValueError, match="no run"):
        write_report([tmp_path / "unfinished"])


def test_reading_and_drawing_need_no_jax():
    modules = "collect, optimum, style, tables, compute_figures, law_figures, sections, page"
    code = f"import sys, scaling.commands.report\nfrom scaling.report import {modules}\nassert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_drawn_isoflop_curve_is_the_fitted_one(tmp_path):
    sweep(tmp_path)
    ladder = collect([tmp_path])
    (axes, *_) = isoflop_drawing(ladder).figure.axes
    lines = [line for line in axes.lines if len(line.get_xdata()) == 200]
    curves = [curve for curve in isoflop_curves(ladder.points).curves if len(curve.x) > 1]
    assert len(lines) == len(curves) == 4
    for line, curve in zip(lines, curves, strict=True):
        np.testing.assert_allclose(line.get_ydata(), curve.at(np.log(line.get_xdata())))
    stars = [line.get_xydata()[0] for line in axes.lines if line.get_marker() == "*" and len(line.get_xdata())]
    np.testing.assert_allclose(stars, [np.exp(curve.minimum)[[0, 2]] for curve in curves if not curve.reason])


def test_points_read_back_as_the_runs(tmp_path):
    sweep(tmp_path)
    run(tmp_path, "broken", 64, 1e6, stop=0.5, ends_in=math.nan)
    ladder = collect([tmp_path])
    write_points(ladder, tmp_path / "points.csv")
    for count, column in (("total", "params"), ("kaplan", "params_kaplan")):
        table = read_table(tmp_path / "points.csv", {"params": column}, run="run")
        expected = ladder.points_by(count)
        order = [expected.names.index(name) for name in table.runs]
        assert len(table) == len(expected)
        for quantity in ("params", "tokens", "flops", "loss"):
            np.testing.assert_allclose(table[quantity], expected[quantity][order], rtol=1e-9)
