"""Scores of tasks in the report, on the committed records of the in-context experiment."""

from pathlib import Path

import pytest

from scaling.laws.report.collect import collect
from scaling.laws.report.tables import tasks
from scaling.laws.report.task_figures import accuracy, task_scores

RUNS = Path(__file__).resolve().parents[2] / "docs/results/in_context/runs"


@pytest.fixture(scope="module")
def scores():
    return task_scores(collect([RUNS]))


def test_few_shot_is_above_one_shot_is_above_zero_shot_and_the_gap_grows(scores):
    by_size = {}
    for score in scores:
        by_size.setdefault(score.params, {})[score.shots] = score
    gaps = []
    for size in sorted(by_size):
        zero, one, few = (by_size[size][k] for k in (0, 1, 15))
        assert zero.value + 2 * zero.error < few.value - 2 * few.error
        assert zero.value < one.value < few.value
        gaps.append(few.value - zero.value)
    assert len(gaps) == 8
    assert max(gaps[:2]) < gaps[2] < gaps[3] < min(gaps[4:])


def test_scores_are_means_over_a_group_with_their_error(scores):
    assert {(s.group, s.metric, s.tasks, s.items) for s in scores} == {("code_books", "accuracy", 20, 2000)}
    for score in scores:  # at most that of 2,000 coin tosses
        assert 0 <= score.error <= (0.25 / 2000) ** 0.5 + 1e-9


def test_figure_and_table(scores):
    (drawing,) = accuracy(scores)
    assert drawing.name == "task_code_books" and "mean of 20 tasks" in drawing.caption
    assert drawing.svg.startswith(b"<?xml")
    assert tasks(scores).count("<tr>") == 1 + 8
