"""Scores of tasks from the records of runs, and means of them that can be compared: over the same tasks everywhere."""

import collections
import dataclasses
import math
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from scaling.evaluate.scoring.metrics import METRICS
from scaling.report.collect import Ladder

# The first that all tasks of a group have is shown.
_METRICS = {name: metric for own, metric in METRICS.items() if metric.shown for name in (own, metric.harness) if name}
_HARNESS = "harness"  # group of lm-evaluation-harness's tasks; "harness/NAME" where NAME has a score of its own
_BIAS = ("crows_pairs", "winogender")  # groups, for records that do not say what their task measures
_NAMED = 5  # runs and tasks that a note names
_DIFFERS = 0.05  # from the number of examples asked for, before it is said


@dataclasses.dataclass(frozen=True)
class TaskScore:
    """A task, or the mean over several, of one run at one step and one number of shots, with its standard error.

    Attributes:
        flops: of the training up to the step, as the run counted them.
        shots: examples in the context; in ``overall`` 2 stands for the most that each task was given.
        chance: score of guessing; None where one of the tasks has none.
        shots_used: examples that were really in the context, the mean over items and tasks.
        left_out: items that were too long for the context and are no part of the score.
        sampled: the tasks of the group are a random sample of what it stands for.
        measures: ability or bias.
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
    shots_used: float
    left_out: int
    sampled: bool
    measures: str

    @property
    def fewer(self) -> bool:
        """Whether fewer examples were used than asked for."""
        return abs(self.shots_used - self.shots) > _DIFFERS


def task_scores(ladder: Ladder) -> list[TaskScore]:
    """Every task at every step and number of shots; tasks of a group that share no metric are groups of their own."""
    found = [
        (entry, record) for entry in ladder.entries for record in entry.run.task_evals if _known(record) & set(_METRICS)
    ]
    metrics: dict[str, set[str]] = {}
    for _, record in found:
        group = record.get("group", record["task"])
        metrics[group] = metrics.get(group, set(_METRICS)) & _known(record)
    scores = []
    for entry, record in found:
        group = record.get("group", record["task"])
        shared = metrics[group] or _known(record)
        metric = next(name for name in _METRICS if name in shared)
        value, error = record["scores"][metric]
        alone = f"{_HARNESS}/{record['task']}" if _of_harness(group) else record["task"]  # no task of ours by that name
        scores.append(
            TaskScore(
                run=entry.name,
                params=entry.params,
                flops=entry.run.flops_per_token * record["tokens"],
                tokens=float(record["tokens"]),
                step=record["step"],
                group=group if metrics[group] else alone,
                tasks=(record["task"],),
                metric=metric,
                shots=record["shots"],
                value=value,
                error=math.nan if error is None else error,  # of a single item
                items=record["count"],
                chance=record.get("chance") if _METRICS[metric].chance else None,
                shots_used=record.get("shots_used", float(record["shots"])),
                left_out=record.get("left_out", 0),
                sampled=record.get("sampled", False),
                measures=record.get("measures") or _measures(group, record["task"]),
            )
        )
    return scores


def _known(record: Mapping[str, Any]) -> set[str]:
    """Metrics that have a value; what is not finite is null in a record."""
    return {metric for metric, (value, _) in record["scores"].items() if value is not None}


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

    Tasks that measure bias are no part of it, and each task counts once: ours, where the harness has it too. Shots are
    0, 1 and, for the most that each task was given, 2.
    """
    accuracies, notes = _each_ability_once([score for score in scores if _METRICS[score.metric].comparable])
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
    means = _means("all", drawn, lambda s: (s.run, s.shots))
    return dataclasses.replace(means, notes=[*notes, *(f"all: {note}" for note in means.notes)])


def last(scores: Sequence[TaskScore]) -> list[TaskScore]:
    """The scores of the last step of each run."""
    steps: dict[str, int] = {}
    for score in scores:
        steps[score.run] = max(score.step, steps.get(score.run, 0))
    return [score for score in scores if score.step == steps[score.run]]


def fit_notes(scores: Sequence[TaskScore]) -> list[str]:
    """Which of these tasks were given fewer examples than asked for, and of which items were left out."""
    notes = []
    for group, shots in sorted({(score.group, score.shots) for score in scores if score.fewer}):
        fewer = [score for score in scores if (score.group, score.shots) == (group, shots) and score.fewer]
        used = {name: used_text(part) for name, part in _by_name(fewer).items()}
        notes.append(f"{group} at {shots} shots: fewer examples were used, on average, in {_names(used, used)}")
    for group in dict.fromkeys(score.group for score in scores if score.left_out):
        short = [score for score in scores if score.group == group and score.left_out]
        counts = {name: _range([s.left_out for s in part], "d") for name, part in _by_name(short).items()}
        notes.append(f"{group}: items that are longer than the context are left out of {_names(counts, counts)}")
    return notes


def used_text(scores: Iterable[TaskScore]) -> str:
    """How many examples were really used, "2.0" or "1.2 to 2.0"; empty where it is as many as asked for."""
    scores = list(scores)
    return _range([score.shots_used for score in scores], ".1f") if any(score.fewer for score in scores) else ""


def _range(values: Sequence[float], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def _by_name(scores: Iterable[TaskScore]) -> dict[str, list[TaskScore]]:
    found = collections.defaultdict(list)
    for score in scores:
        found[score.tasks[0]].append(score)
    return found


def _of_harness(group: str) -> bool:
    return group == _HARNESS or group.startswith(f"{_HARNESS}/")


def _measures(group: str, task: str) -> str:
    """What a task measures whose record does not say so; the harness's bear a language or a type behind the name."""
    return "bias" if group in _BIAS or (_of_harness(group) and task.startswith(_BIAS)) else "ability"


def _each_ability_once(scores: Sequence[TaskScore]) -> tuple[list[TaskScore], list[str]]:
    """Without tasks that measure bias, scores of the harness's groups beside their tasks, and a name's second task."""
    notes = []
    if bias := {score.tasks[0] for score in scores if score.measures != "ability"}:
        notes.append(f"all: without {_names(bias)}, which measure bias and no ability")
    inside = {score.group for score in scores if score.group != f"{_HARNESS}/{score.tasks[0]}"}
    counts = collections.Counter(
        (score.tasks[0], score.group)
        for score in scores
        if score.measures == "ability" and not (_of_harness(score.group) and f"{_HARNESS}/{score.tasks[0]}" in inside)
    )
    taken: dict[str, str] = {}  # name -> group: ours, then the one with the most scores
    for name, group in sorted(counts, key=lambda pair: (_of_harness(pair[1]), -counts[pair])):
        taken.setdefault(name, group)
    if twice := {name for name, group in counts if group != taken[name]}:
        notes.append(f"all: {_names(twice)} {'counts' if len(twice) == 1 else 'count'} once, ours where there is one")
    return [score for score in scores if taken.get(score.tasks[0]) == score.group], notes


def _groups(scores: Iterable[TaskScore]) -> list[str]:
    return list(dict.fromkeys(score.group for score in scores))


def _mean(group: str, scores: Sequence[TaskScore]) -> TaskScore:
    """Of different tasks, whose errors are independent; those of each group may be a sample."""
    groups = [[score for score in scores if score.group == name] for name in _groups(scores)]
    chances = [score.chance for score in scores if score.chance is not None]
    return dataclasses.replace(
        scores[0],
        group=group,
        tasks=tuple(score.tasks[0] for score in scores),
        value=sum(score.value for score in scores) / len(scores),
        error=math.hypot(*(len(part) * _error(part) for part in groups)) / len(scores),
        items=sum(score.items for score in scores),
        chance=sum(chances) / len(scores) if len(chances) == len(scores) else None,
        shots_used=sum(score.shots_used for score in scores) / len(scores),
        left_out=sum(score.left_out for score in scores),
        sampled=any(score.sampled for score in scores),
        measures="bias" if all(score.measures == "bias" for score in scores) else "ability",
    )


def _error(scores: Sequence[TaskScore]) -> float:
    """Of the mean of a group: of independent items, but where tasks are a sample at least that of the sample."""
    independent = math.hypot(*(score.error for score in scores)) / len(scores)
    if len(scores) < 2 or not any(score.sampled for score in scores):
        return independent
    spread = statistics.stdev(score.value for score in scores) / math.sqrt(len(scores))
    return spread if math.isnan(independent) else max(spread, independent)


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


def _names(names: Iterable[str], about: Mapping[str, str] | None = None) -> str:
    """a, b and 3 more; with ``about``, a (2.0), b (3.1) and 3 more."""
    ordered = sorted(names)
    more = len(ordered) - _NAMED
    shown = [name if about is None else f"{name} ({about[name]})" for name in ordered[:_NAMED]]
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
