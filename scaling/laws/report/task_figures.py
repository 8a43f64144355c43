"""Accuracy of tasks against size and number of examples, as GPT-3's figures 1.2 and 1.3 show it."""

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from scaling.laws.report.collect import Ladder
from scaling.laws.report.style import BLUE, GREEN, ORANGE, PURPLE, VERMILION, Colours, Drawing, around, canvas, log_axis

_COLOURS = (BLUE, ORANGE, VERMILION, GREEN, PURPLE)
_METRICS = ("accuracy", "exact_match", "exact", "f1", "macro_f1")  # the first that a task has is drawn


@dataclasses.dataclass(frozen=True)
class TaskScore:
    """The mean over the tasks of a group of one run at one number of shots, and its standard error."""

    run: str
    params: float
    group: str
    metric: str
    shots: int
    value: float
    error: float
    tasks: int
    items: int


def task_scores(ladder: Ladder) -> list[TaskScore]:
    """The last evaluation of every task in every run, averaged over groups."""
    found = []
    for entry in ladder.entries:
        last: dict[tuple[str, str, int], dict[str, Any]] = {}
        for record in entry.run.task_evals:
            last[record.get("group", record["task"]), record["task"], record["shots"]] = record
        groups = collections.defaultdict(list)
        for (group, _, shots), record in last.items():
            groups[group, shots].append(record)
        for (group, shots), records in groups.items():
            shared = [m for m in _METRICS if all(m in record["scores"] for record in records)]
            if not shared:
                continue
            pairs = np.array([record["scores"][shared[0]] for record in records], float)
            found.append(
                TaskScore(
                    run=entry.name,
                    params=entry.params,
                    group=group,
                    metric=shared[0],
                    shots=shots,
                    value=float(pairs[:, 0].mean()),
                    error=float(math.sqrt((pairs[:, 1] ** 2).sum()) / len(records)),
                    tasks=len(records),
                    items=sum(record["count"] for record in records),
                )
            )
    return found


def accuracy(scores: Sequence[TaskScore]) -> list[Drawing]:
    """A figure for each group: against size, one line a number of shots; against that number, one line a size."""
    return [_group([s for s in scores if s.group == group]) for group in dict.fromkeys(s.group for s in scores)]


def _group(scores: Sequence[TaskScore]) -> Drawing:
    first = scores[0]
    shots = sorted({s.shots for s in scores})
    with canvas(columns=2, width=10, height=4.6) as (figure, (by_size, by_shots)):
        drawn = [k for k in shots if k in (0, 1)] + [k for k in shots if k == max(shots) and k > 1]
        for k, colour in zip(drawn, _COLOURS, strict=False):
            line = sorted((s for s in scores if s.shots == k), key=lambda s: s.params)
            label = {0: "zero-shot", 1: "one-shot"}.get(k, f"few-shot (K = {k})")
            by_size.errorbar(
                [s.params for s in line],
                [s.value for s in line],
                yerr=[1.96 * s.error for s in line],
                color=colour,
                marker="o",
                ms=5,
                capsize=2,
                label=label,
            )
        sizes = sorted({s.params for s in scores})
        log_axis(by_size, "x", "count", *around(sizes), "parameters N")
        by_size.set(ylabel=first.metric.replace("_", " "))
        by_size.legend(loc="best")
        colours = Colours(sizes)
        for size in sizes:
            line = sorted((s for s in scores if s.params == size), key=lambda s: s.shots)
            by_shots.plot([s.shots for s in line], [s.value for s in line], "o-", ms=4, color=colours(size))
        by_shots.set(xlabel="examples in the context, K", ylabel=first.metric.replace("_", " "))
        colours.bar(figure, by_shots, "parameters N")
    tasks = f"mean of {first.tasks} tasks" if first.tasks > 1 else "one task"
    return Drawing(
        f"task_{first.group}",
        f"{first.group}: {tasks}, {first.items:,} items at each number of shots. Bars are 95 % intervals.",
        figure,
    )
