"""Scores of tasks in the report: on the committed records of the in-context experiment, and on made-up runs."""

import dataclasses
import itertools
import json
import math
import re
import statistics
from pathlib import Path

import pytest

from scaling.config import schema as cfg
from scaling.evaluate.scoring import records
from scaling.evaluate.scoring.records import Result
from scaling.report import task_figures
from scaling.report.collect import collect
from scaling.report.sections import _tasks
from scaling.report.tables import tasks
from scaling.report.task_scores import fit_notes, group_means, last, overall, task_scores

RUNS = Path(__file__).resolve().parents[2] / "docs/results/in_context/runs"


@pytest.fixture(scope="module")
def means():
    (means,) = group_means(task_scores(collect([RUNS])))
    return means


def in_standard_errors(differences):
    return statistics.mean(differences) / statistics.stdev(differences) * len(differences) ** 0.5


def test_few_shot_is_above_one_shot_is_above_zero_shot_and_the_gap_grows(means):
    """What docs/results/in_context says, by differences that are paired over the code books."""
    by_size = {}
    for score in means.single:
        by_size.setdefault(score.params, {}).setdefault(score.shots, {})[score.tasks] = score.value
    gaps = []
    for _, shots in sorted(by_size.items()):
        zero, one, few = ([shots[k][task] for task in sorted(shots[0])] for k in (0, 1, 15))
        assert len(few) == 20
        for more, fewer in ((one, zero), (few, one), (few, zero)):
            assert in_standard_errors([a - b for a, b in zip(more, fewer, strict=True)]) > 2
        gaps.append([a - b for a, b in zip(few, zero, strict=True)])
    assert len(gaps) == 8
    growth = [in_standard_errors([b - a for a, b in zip(*pair, strict=True)]) for pair in itertools.pairwise(gaps)]
    assert min(growth[1:4]) > 8
    assert all(abs(growth[step]) < 1 for step in (0, 4, 5, 6))


def test_scores_are_means_over_a_group_with_the_error_of_a_sample(means):
    assert {(s.group, s.metric, len(s.tasks), s.items) for s in means.scores} == {("code_books", "accuracy", 20, 2000)}
    assert len(means.single) == 20 * len(means.scores) and not means.notes
    ratios = []
    for score in means.scores:
        books = [s for s in means.single if (s.run, s.shots) == (score.run, score.shots)]
        independent = sum(s.error**2 for s in books) ** 0.5 / 20
        spread = statistics.stdev(s.value for s in books) / 20**0.5
        assert score.sampled and score.error == pytest.approx(max(independent, spread))
        ratios.append(score.error / independent)
    assert min(ratios) == 1 and max(ratios) == pytest.approx(3.5, abs=0.1)


def test_the_results_say_what_the_records_say(means):
    """Every number and error in the first table of docs/results/in_context."""
    text = (RUNS.parent / "README.md").read_text(encoding="utf-8")
    sizes = sorted({score.params for score in means.scores})
    lines = [line for line in text.splitlines() if line.count("|") == 8 and "±" in line]
    assert len(lines) == len(sizes) == 8
    for line, size in zip(lines, sizes, strict=True):
        scores = sorted((s for s in means.scores if s.params == size), key=lambda s: s.shots)
        cells = [cell.split("±") for cell in line.strip("|").split("|")[1:]]
        for (value, error), score in zip(cells, scores, strict=True):
            assert float(value) == pytest.approx(score.value, abs=0.00051)
            assert float(error) == pytest.approx(score.error, abs=0.00051)


def test_figure_and_table(means):
    drawing = task_figures.of_group(means)
    assert drawing.name == "task_code_books" and "mean of 20 tasks" in drawing.caption
    size, compute, single, shots = drawing.figure.axes[:4]
    assert [axes.get_xlabel() for axes in (size, compute, single, shots)] == [
        "parameters N",
        "compute C (FLOPs)",
        "parameters N",
        "examples in the context, K",
    ]
    assert [label.get_text() for label in size.get_legend().get_texts()] == [
        "zero-shot",
        "one-shot",
        "few-shot (K = 15)",
    ]
    assert len(size.containers) == len(compute.containers) == 3 and len(shots.containers) == 8
    assert len(single.lines) >= 3 * 20
    assert drawing.svg.startswith(b"<?xml")
    assert tasks(last(means.scores)).count("<tr>") == 1 + 8


def run(folder, name, records, width=16):
    """A finished run, and records of tasks: (step, group, task, shots, value, chance), and further keys as a dict."""
    model = cfg.Model(
        vocab_size=64, context_length=8, num_layers=1, d_model=width, num_heads=2, d_head=8, d_ff=4 * width
    )
    config = cfg.to_dict(cfg.Config(model=model, train=cfg.Train(tokens=1000, batch_tokens=100)))
    (folder / name).mkdir(parents=True)
    (folder / name / "config.json").write_text(json.dumps({"config": config, "flops_per_token": 100.0 * width}))
    lines = [{"step": 10, "tokens": 1000, "loss": 40 / width}]
    (folder / name / "metrics.jsonl").write_text(json.dumps(lines[0]) + "\n")
    for step, group, task, shots, value, chance, *more in records:
        place = {"step": step, "tokens": 100 * step, "task": task, "group": group, "shots": shots}
        scores = {"accuracy": [value, 0.03], "f1": [0.9, 0.1]} if value is not None else {"perplexity": [9.0, 0.1]}
        lines.append(place | {"scores": scores, "count": 50, "chance": chance} | dict(*more))
    (folder / name / "evals.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def along(group, names, shots, steps, chance=None, **more):
    return [(s, group, name, k, 0.01 * s + 0.1 * k, chance, more) for s in steps for name in names for k in shots]


def test_evaluations_along_a_run_are_curves_and_the_last_step_is_the_point(tmp_path):
    records = along("pair", ["a", "b"], [0, 4], [2, 4, 10], chance=0.5)
    run(tmp_path, "small", records[::-1])  # an older checkpoint may be evaluated later
    run(tmp_path, "large", along("pair", ["a", "b"], [0, 4], [10], chance=0.5), width=32)
    ladder = collect([tmp_path])
    (means,) = group_means(task_scores(ladder))
    assert {(s.run, s.step, s.shots) for s in last(means.scores)} == {
        (name, 10, k) for name in ("small", "large") for k in (0, 4)
    }
    (curve,) = (s for s in means.scores if (s.run, s.step, s.shots) == ("small", 4, 4))
    assert (curve.flops, curve.tokens) == (1600 * 400, 400)
    assert curve.value == pytest.approx(0.44) and curve.error == pytest.approx(0.03 / 2**0.5)
    assert curve.chance == 0.5 and curve.items == 100

    size, compute = task_figures.of_group(means).figure.axes[:2]
    assert "chance" in [label.get_text() for label in size.get_legend().get_texts()]
    few = [container for container in size.containers if container.get_label() == "few-shot (K = 4)"]
    assert list(few[0][0].get_ydata()) == pytest.approx([0.5, 0.5])
    curves = [line for line in compute.lines if len(line.get_xdata()) == 3]
    assert [list(line.get_xdata()) for line in curves] == [[1600 * 200, 1600 * 400, 1600 * 1000]] * 2

    main, training = _tasks(ladder)
    assert (main.key, training.key) == ("tasks", "training")
    (drawing,) = training.drawings
    (axes,) = drawing.figure.axes  # the other run was evaluated once
    assert axes.get_title("left") == "small"
    assert [label.get_text() for label in axes.get_legend().get_texts()] == ["K = 0", "K = 4", "chance"]
    assert list(axes.containers[1][0].get_xdata()) == [200, 400, 1000]


def test_means_are_over_the_same_tasks_everywhere(tmp_path):
    run(tmp_path, "whole", along("g", "abc", [0, 1], [10]) + along("g", "a", [7], [10]))
    run(tmp_path, "part", along("g", "ab", [0], [10]), width=32)
    run(tmp_path, "other", along("g", "abcd", [0, 1], [10]), width=48)
    run(tmp_path, "often", along("g", "abc", [0, 1], [10]) + along("g", "ab", [0, 1], [2, 4, 6]), width=64)
    scores = task_scores(collect([tmp_path]))
    (means,) = group_means(scores)
    assert {s.tasks for s in means.scores} == {("a", "b", "c")}
    assert {(s.run, s.step, s.shots) for s in means.scores} == {
        (name, 10, k) for name in ("whole", "other", "often") for k in (0, 1)
    }
    missing, lacking = means.notes
    assert re.match("g: .*3 tasks .*without d$", missing)
    assert "part, whole are left out" in lacking
    # Along the run what was measured most often counts.
    assert [axes.get_title("left") for axes in task_figures.over_training(scores)[0].figure.axes] == ["often"]


def test_all_tasks_together(tmp_path):
    for name, width in (("small", 16), ("large", 32)):
        records = along("one", ["a", "b"], [0, 1, 8], [10], chance=0.25)
        records += [*along("two", ["c"], [0, 1, 2, 3], [10], chance=0.5), (10, "text", "t", 0, None, None)]
        run(tmp_path, name, records, width)
    scores = task_scores(collect([tmp_path]))
    assert {score.group for score in scores} == {"one", "two"}  # perplexity is no accuracy
    means = overall(scores)
    assert {(s.shots, len(s.tasks)) for s in means.scores} == {(0, 3), (1, 3), (2, 3)}
    few = next(s for s in means.scores if s.shots == 2)
    assert few.value == pytest.approx((2 * (0.1 + 0.8) + 0.1 + 0.3) / 3)
    assert few.chance == pytest.approx((0.25 + 0.25 + 0.5) / 3)
    (section,) = _tasks(collect([tmp_path]))
    assert [drawing.name for drawing in section.drawings] == ["tasks", "task_one", "task_two"]
    labels = [text.get_text() for text in section.drawings[0].figure.axes[0].get_legend().get_texts()]
    assert sorted(labels) == ["chance", "few-shot", "one-shot", "zero-shot"]
    assert len(section.drawings[2].figure.axes) == 3 + 1  # no panel of single tasks; a colour bar


def test_tasks_without_a_common_metric_stand_alone(tmp_path):
    run(tmp_path, "r", along("mixed", ["a/b"], [0], [10]))
    path = tmp_path / "r/evals.jsonl"
    place = {"step": 10, "tokens": 1000, "task": "c", "group": "mixed", "shots": 0, "count": 5, "chance": None}
    with path.open("a") as file:
        file.write(json.dumps(place | {"scores": {"exact": [0.2, 0.1]}}) + "\n")
    scores = task_scores(collect([tmp_path]))
    assert [(score.group, score.metric) for score in scores] == [("a/b", "accuracy"), ("c", "exact")]
    assert [task_figures.of_group(means).name for means in group_means(scores)] == ["task_a_b", "task_c"]


def test_one_run_at_one_number_of_shots(tmp_path):
    run(tmp_path, "r", along("g", ["a"], [5], [10]))
    (section,) = _tasks(collect([tmp_path]))
    (drawing,) = section.drawings
    assert [axes.get_xlabel() for axes in drawing.figure.axes] == ["parameters N", "compute C (FLOPs)"]
    assert drawing.svg.startswith(b"<?xml") and section.html.count("<tr>") == 2


def test_no_tasks_no_section(tmp_path):
    run(tmp_path, "r", [])
    assert _tasks(collect([tmp_path])) == []


def test_variants_that_are_a_sample_have_the_error_of_the_sample(tmp_path):
    values = (0.1, 0.3, 0.8)
    for name, more in (("sampled", {"sampled": True}), ("not", {})):
        records = [(10, name, f"{name}_{i}", 0, value, None, more) for i, value in enumerate(values)]
        run(tmp_path, name, [*records, (10, "alone", "alone", 0, 0.4, None, more)])
    records = [(10, "sampled", f"sampled_{i}", 0, 0.3, None, {"sampled": True}) for i in range(3)]
    run(tmp_path, "alike", records, width=32)
    scores = task_scores(collect([tmp_path]))
    errors = {(s.group, s.run): s.error for means in group_means(scores) for s in means.scores}
    spread = statistics.stdev(values) / 3**0.5
    assert spread > 0.03 / 3**0.5
    assert errors["sampled", "sampled"] == pytest.approx(spread)
    assert errors["not", "not"] == errors["sampled", "alike"] == pytest.approx(0.03 / 3**0.5)
    assert errors["alone", "sampled"] == errors["alone", "not"] == pytest.approx(0.03)  # of one task, no sample
    # In the mean over all tasks, the group's error counts for its three tasks.
    (mean,) = overall([s for s in scores if s.run == "sampled"]).scores
    assert mean.error == pytest.approx(math.hypot(3 * spread, 0.03) / 4)
    (mean,) = overall([s for s in scores if s.run == "not"]).scores
    assert mean.error == pytest.approx(0.03 / 2)


def test_examples_that_were_really_used(tmp_path):
    for name, width, used in (("short", 16, 1.25), ("long", 32, 3.96)):
        records = along("g", "ab", [0], [2, 6, 10], shots_used=0.0, left_out=3)
        records += along("g", "a", [1, 8], [2, 6, 10], shots_used=1.0)
        records += along("g", "b", [1], [2, 6, 10], shots_used=0.5)
        records += along("g", "b", [8], [2, 6, 10], shots_used=2 * used - 1.0)
        run(tmp_path, name, records, width)
    (means,) = group_means(task_scores(collect([tmp_path])))
    drawing = task_figures.of_group(means)
    size, _, _, shots = drawing.figure.axes[:4]
    assert [text.get_text() for text in size.get_legend().get_texts()] == [
        "zero-shot",
        "one-shot (0.8 used)",
        "few-shot (K = 8, 1.2 to 4.0 used)",
    ]
    assert [list(line[0].get_xdata()) for line in shots.containers] == [
        pytest.approx([0, 0.75, 1.25]),
        pytest.approx([0, 0.75, 3.96]),
    ]
    assert drawing.svg.startswith(b"<?xml")
    ticks = shots.xaxis.get_major_locator()()
    assert max(ticks) == 4.0 and min(ticks) == 0
    notes = fit_notes(last(means.single))
    wanted = (
        r"g at 1 shots: fewer .* in b \(0\.5\)",
        r"g at 8 shots: fewer .* in a \(1\.0\), b \(1\.5 to 6\.9\)",
        r"g: .* left out of a \(3\), b \(3\)",
    )
    assert all(re.fullmatch(words, note) for words, note in zip(wanted, notes, strict=True))
    assert "2 tasks, 100 items" in drawing.caption
    path = tmp_path / "long/evals.jsonl"
    path.write_text(path.read_text().replace('"count": 50', '"count": 47'))
    (means,) = group_means(task_scores(collect([tmp_path])))
    assert "up to 100 items" in task_figures.of_group(means).caption
    main, training = _tasks(collect([tmp_path]))
    assert all(note in main.html for note in notes)
    legend = training.drawings[0].figure.axes[0].get_legend()
    assert "K = 8, 1.2 to 4.0 used" in [text.get_text() for text in legend.get_texts()]


def test_a_record_that_says_nothing_of_examples_used_them_all(tmp_path):
    run(tmp_path, "old", along("g", "ab", [0, 4], [10]))
    run(tmp_path, "new", along("g", "ab", [0], [10], shots_used=0.0) + along("g", "ab", [4], [10], shots_used=3.96), 32)
    (means,) = group_means(task_scores(collect([tmp_path])))
    assert {s.shots_used for s in means.scores} == {0, 4, 3.96} and not any(s.fewer for s in means.scores)
    assert fit_notes(means.single) == []
    legend = task_figures.of_group(means).figure.axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["zero-shot", "few-shot (K = 4)"]


def test_the_error_of_one_item_is_not_known(tmp_path):
    run(tmp_path, "r", along("g", "a", [0, 4], [10]))
    path = tmp_path / "r/evals.jsonl"
    path.write_text(path.read_text().replace("0.03]", "null]").replace("0.1]", "null]"))
    (section,) = _tasks(collect([tmp_path]))
    assert section.drawings[0].svg.startswith(b"<?xml")
    assert "0.500</td>" in section.html and "nan" not in section.html
    path.write_text(path.read_text().replace('"accuracy": [0.1, null]', '"accuracy": [null, null]'))
    assert {(score.metric, score.shots) for score in task_scores(collect([tmp_path]))} == {("f1", 0), ("f1", 4)}


def test_the_mean_over_all_tasks_is_of_abilities(tmp_path):
    records = along("one", "ab", [0], [10]) + along("two", "c", [0], [10])
    records += along("crows_pairs", ["crows_pairs"], [0], [10])  # an old record
    records += along("mine", ["mine"], [0], [10], measures="bias")
    records += along("harness", ["winogender_all", "d"], [0], [10])
    run(tmp_path, "r", records)
    scores = task_scores(collect([tmp_path]))
    means = overall(scores)
    assert {score.tasks for score in means.scores} == {("d", "a", "b", "c")}
    (note,) = means.notes
    assert re.match("all: without crows_pairs, mine, winogender_all, .*bias", note)
    assert {means.scores[0].group for means in group_means(scores)} >= {"crows_pairs", "mine"}  # they have figures
    assert overall([score for score in scores if score.group in ("one", "crows_pairs")]) is None
    (section,) = _tasks(collect([tmp_path]))
    assert means.notes[0] in section.html


def test_the_mean_over_all_tasks_counts_each_once(tmp_path):
    records = [(10, "piqa", "piqa", 0, 0.6, None), (10, "boolq", "boolq", 0, 0.5, None)]
    theirs = [(10, "harness", "piqa", 0, 0.9, None), (10, "harness", "arc_easy", 0, 0.2, None)]
    group = [(10, "harness", "mmlu", 0, 0.3, None)]  # the group's own score, beside its tasks
    group += [(10, "harness/mmlu", name, 0, 0.3, None) for name in ("law", "logic")]
    run(tmp_path, "r", theirs + group + records)
    means = overall(task_scores(collect([tmp_path])))
    (score,) = means.scores
    assert sorted(score.tasks) == ["arc_easy", "boolq", "law", "logic", "piqa"]
    assert score.value == pytest.approx((0.6 + 0.5 + 0.2 + 0.3 + 0.3) / 5)
    (note,) = means.notes
    assert note.startswith("all: piqa counts once")


def test_a_task_of_the_harness_that_stands_alone_is_not_ours(tmp_path):
    run(tmp_path, "r", [(10, "piqa", "piqa", 0, 0.6, None), (10, "harness", "piqa", 0, 0.9, None)])
    path = tmp_path / "r/evals.jsonl"
    place = {"step": 10, "tokens": 1000, "task": "gsm8k", "group": "harness", "shots": 0, "count": 5, "chance": None}
    with path.open("a") as file:
        file.write(json.dumps(place | {"scores": {"exact_match": [0.2, 0.1]}}) + "\n")
    scores = task_scores(collect([tmp_path]))
    assert [(s.group, s.value) for s in scores] == [("piqa", 0.6), ("harness/piqa", 0.9), ("harness/gsm8k", 0.2)]
    (score,) = overall(scores).scores
    assert (score.tasks, score.value) == (("gsm8k", "piqa"), pytest.approx(0.4))


def test_the_report_reads_what_evaluations_write(tmp_path):
    run(tmp_path, "r", [])
    result = Result(
        task="v1",
        group="g",
        shots=8,
        scores={"accuracy": (0.5, math.nan)},
        count=1,
        chance=0.5,
        samples=(),
        notes=(),
        shots_used=2.5,
        left_out=3,
        sampled=True,
        measures="bias",
    )
    other = dataclasses.replace(result, task="v2", sampled=False, measures="ability", scores={"accuracy": (0.4, 0.1)})
    records.append(tmp_path / "r/evals.jsonl", 10, 1000, [result, other])
    first, second = task_scores(collect([tmp_path]))
    assert (first.shots, first.shots_used, first.left_out, first.items) == (8, 2.5, 3, 1)
    assert (first.sampled, first.measures, second.sampled, second.measures) == (True, "bias", False, "ability")
    assert math.isnan(first.error) and second.error == 0.1
    (mean,) = group_means([first, second])[0].scores
    assert mean.error == pytest.approx(statistics.stdev((0.5, 0.4)) / 2**0.5)
