"""Scores of tasks in the report: on the committed records of the in-context experiment, and on made-up runs."""

import json
from pathlib import Path

import pytest

from scaling import config as cfg
from scaling.laws.report import task_figures
from scaling.laws.report.collect import collect
from scaling.laws.report.sections import _tasks
from scaling.laws.report.tables import tasks
from scaling.laws.report.task_scores import group_means, last, overall, task_scores

RUNS = Path(__file__).resolve().parents[2] / "docs/results/in_context/runs"


@pytest.fixture(scope="module")
def means():
    (means,) = group_means(task_scores(collect([RUNS])))
    return means


def test_few_shot_is_above_one_shot_is_above_zero_shot_and_the_gap_grows(means):
    by_size = {}
    for score in means.scores:
        by_size.setdefault(score.params, {})[score.shots] = score
    gaps = []
    for size in sorted(by_size):
        zero, one, few = (by_size[size][k] for k in (0, 1, 15))
        assert zero.value + 2 * zero.error < few.value - 2 * few.error
        assert zero.value < one.value < few.value
        gaps.append(few.value - zero.value)
    assert len(gaps) == 8
    assert max(gaps[:2]) < gaps[2] < gaps[3] < min(gaps[4:])


def test_scores_are_means_over_a_group_with_their_error(means):
    assert {(s.group, s.metric, len(s.tasks), s.items) for s in means.scores} == {("code_books", "accuracy", 20, 2000)}
    assert len(means.single) == 20 * len(means.scores) and not means.notes
    for score in means.scores:  # at most that of 2,000 coin tosses
        assert 0 <= score.error <= (0.25 / 2000) ** 0.5 + 1e-9


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
    """A finished run, and records of tasks: (step, group, task, shots, value, chance)."""
    model = cfg.Model(
        vocab_size=64, context_length=8, num_layers=1, d_model=width, num_heads=2, d_head=8, d_ff=4 * width
    )
    config = cfg.to_dict(cfg.Config(model=model, train=cfg.Train(tokens=1000, batch_tokens=100)))
    (folder / name).mkdir(parents=True)
    (folder / name / "config.json").write_text(json.dumps({"config": config, "flops_per_token": 100.0 * width}))
    lines = [{"step": 10, "tokens": 1000, "loss": 40 / width}]
    (folder / name / "metrics.jsonl").write_text(json.dumps(lines[0]) + "\n")
    for step, group, task, shots, value, chance in records:
        place = {"step": step, "tokens": 100 * step, "task": task, "group": group, "shots": shots}
        scores = {"accuracy": [value, 0.03], "f1": [0.9, 0.1]} if value is not None else {"perplexity": [9.0, 0.1]}
        lines.append(place | {"scores": scores, "count": 50, "chance": chance})
    (folder / name / "evals.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def along(group, names, shots, steps, chance=None):
    return [(s, group, name, k, 0.01 * s + 0.1 * k, chance) for s in steps for name in names for k in shots]


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
    assert missing == "g: means are of the 3 tasks that the most runs share, without d"
    assert "some shots of part, whole are left out" in lacking
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
