"""Scores of tasks from the records of runs, and means of them that can be compared: over the same tasks everywhere."""

import collections
import dataclasses
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from scaling.laws.report.collect import Ladder

# The first that all tasks of a group have is shown; BLEU, unlike the others, is no part of one.
_METRICS = ("accuracy", "acc", "exact_match", "exact", "f1", "macro_f1", "bleu")
_ACCURACIES = ("accuracy", "acc", "exact_match", "exact")  # what may stand in one mean
_NAMED = 5  # runs and tasks that a note names


@dataclasses.dataclass(frozen=True)
class TaskScore:
    """A task, or the mean over several, of one run at one step and one number of shots, with its standard error.

    Attributes:
        flops: of the training up to the step, as the run counted them.
        shots: examples in the context; in ``overall`` 2 stands for the most that each task was given.
        chance: score of guessing; None where one of the tasks has none.
    """

    run: str
    params: float
    flops: float
    tokens: float
    step: int
    group: str
    tasks: tuple[str, ...]
    metric: str
    shots: int
    value: float
    error: float
    items: int
    chance: float | None


def task_scores(ladder: Ladder) -> list[TaskScore]:
    """Every task at every step and number of shots; tasks of a group that share no metric are groups of their own."""
    found = [
        (entry, record)
        for entry in ladder.entries
        for record in entry.run.task_evals
        if any(metric in record["scores"] for metric in _METRICS)
    ]
    metrics: dict[str, set[str]] = {}
    for _, record in found:
        group = record.get("group", record["task"])
        metrics[group] = metrics.get(group, set(_METRICS)) & set(record["scores"])
    scores = []
    for entry, record in found:
        group = record.get("group", record["task"])
        shared = metrics[group] or set(record["scores"])
        metric = next(name for name in _METRICS if name in shared)
        value, error = record["scores"][metric]
        scores.append(
            TaskScore(
                run=entry.name,
                params=entry.params,
                flops=entry.run.flops_per_token * record["tokens"],
                tokens=float(record["tokens"]),
                step=record["step"],
                group=group if metrics[group] else record["task"],
                tasks=(record["task"],),
                metric=metric,
                shots=record["shots"],
                value=value,
                error=error,
                items=record["count"],
                chance=record.get("chance") if metric in ("accuracy", "acc") else None,
            )
        )
    return scores


@dataclasses.dataclass(frozen=True)
class Means:
    """Means over tasks at every step and number of shots, the scores of the tasks in them, and what was left out."""

    scores: list[TaskScore]
    single: list[TaskScore]
    notes: list[str]


def group_means(scores: Sequence[TaskScore]) -> list[Means]:
    """The means over each group of tasks.

    They are over the same tasks in every run: those for which the most (run, shots) can be shown.
    """
    result = []
    for group in _groups(scores):
        inside = [score for score in scores if score.group == group]
        means = _means(group, inside, lambda s: (s.run, s.shots))
        result.append(dataclasses.replace(means, notes=[f"{group}: {note}" for note in means.notes]))
    return result


def run_means(scores: Sequence[TaskScore], run: str) -> list[Means]:
    """The means over each group along one run, over the tasks for which the most (step, shots) can be shown."""
    mine = [score for score in scores if score.run == run]
    return [
        _means(group, [score for score in mine if score.group == group], lambda s: (s.step, s.shots))
        for group in _groups(mine)
    ]


def overall(scores: Sequence[TaskScore]) -> Means | None:
    """The mean over the tasks of all groups that have an accuracy, as GPT-3's figure 1.3; None for a single group.

    Shots are 0, 1 and, for the most that each task was given, 2.
    """
    accuracies = [score for score in scores if score.metric in _ACCURACIES]
    if len(_groups(accuracies)) < 2:
        return None
    few: dict[tuple[str, ...], int] = {}
    for score in accuracies:
        few[score.group, *score.tasks] = max(score.shots, few.get((score.group, *score.tasks), 2))
    drawn = [
        dataclasses.replace(score, shots=min(score.shots, 2))
        for score in accuracies
        if score.shots in (0, 1, few[score.group, *score.tasks])
    ]
    return _means("all", drawn, lambda s: (s.run, s.shots))


def last(scores: Sequence[TaskScore]) -> list[TaskScore]:
    """The scores of the last step of each run."""
    steps: dict[str, int] = {}
    for score in scores:
        steps[score.run] = max(score.step, steps.get(score.run, 0))
    return [score for score in scores if score.step == steps[score.run]]


def _groups(scores: Iterable[TaskScore]) -> list[str]:
    return list(dict.fromkeys(score.group for score in scores))


def _mean(group: str, scores: Sequence[TaskScore]) -> TaskScore:
    """Of different tasks, whose errors are independent."""
    chances = [score.chance for score in scores if score.chance is not None]
    return dataclasses.replace(
        scores[0],
        group=group,
        tasks=tuple(score.tasks[0] for score in scores),
        value=sum(score.value for score in scores) / len(scores),
        error=math.sqrt(sum(score.error**2 for score in scores)) / len(scores),
        items=sum(score.items for score in scores),
        chance=sum(chances) / len(scores) if len(chances) == len(scores) else None,
    )


def _means(group: str, scores: Sequence[TaskScore], place: Callable[[TaskScore], Hashable]) -> Means:
    """A mean for each (run, step, shots) that has all of the tasks that are shown; these tasks only.

    Args:
        group: what to call the means.
        scores: of single tasks.
        place: what a score counts for in the choice of the tasks: those with the most places times tasks are shown.
    """
    cells: dict[Any, dict[Any, TaskScore]] = collections.defaultdict(dict)
    places = {}
    for score in scores:
        cell = score.run, score.step, score.shots
        cells[cell][score.group, *score.tasks] = score
        places[cell] = place(score)

    def shown(tasks: frozenset[Any]) -> tuple[int, int]:
        having = {places[cell] for cell, found in cells.items() if tasks <= found.keys()}
        return len(having) * len(tasks), len(tasks)

    tasks = max(dict.fromkeys(frozenset(found) for found in cells.values()), key=shown)
    kept = [[found[task] for task in sorted(tasks)] for found in cells.values() if tasks <= found.keys()]
    notes = []
    if missing := {name for found in cells.values() for _, name in found} - {name for _, name in tasks}:
        notes.append(f"means are of the {len(tasks)} tasks that the most runs share, without {_names(missing)}")
    having = {place(each[0]) for each in kept}
    if lacking := {score.run for score in scores if place(score) not in having}:
        notes.append(f"some shots of {_names(lacking)} are left out, where not all of the {len(tasks)} tasks were run")
    return Means([_mean(group, each) for each in kept], [score for each in kept for score in each], notes)


def _names(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = len(ordered) - _NAMED
    return ", ".join(ordered[:_NAMED]) + (f" and {more} more" if more > 0 else "")
