"""Results of tasks: the data, lines of ``evals.jsonl``, a table."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from scaling.evaluate.scoring.metrics import finite, mean_with_error
from scaling.runs import json_lines

_NEGLIGIBLE = 0.05  # so many demonstrations fewer than asked for are not mentioned


@dataclasses.dataclass(frozen=True)
class Sample:
    """One item as it was asked and answered.

    Attributes:
        answer: the completion chosen, or the text generated.
        scores: metric -> score of this item, where the metric has one; and further numbers of the answer.
        log_likelihoods: of the options, as compared.
        facts: what metrics are computed from, by the names of ``metrics.FACTS``; not saved.
    """

    id: str
    prompt: str
    answer: str
    expected: str
    scores: Mapping[str, float]
    log_likelihoods: tuple[float, ...]
    facts: Mapping[str, tuple] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Result:
    """A task at a number of shots.

    Attributes:
        group: the file of the task; the variants in it share it.
        shots: demonstrations asked for.
        scores: metric -> (value, standard error; NaN for a single item).
        count: items that were scored.
        chance: accuracy of guessing, where there are choices.
        shots_used: mean number of demonstrations that the prompts had; fewer than asked for where they did not fit.
        left_out: further items, too long for the model's context.
        sampled: as in ``Task``.
        measures: as in ``Task``.
    """

    task: str
    group: str
    shots: int
    scores: Mapping[str, tuple[float, float]]
    count: int
    chance: float | None
    samples: tuple[Sample, ...]
    notes: tuple[str, ...]
    shots_used: float
    left_out: int = 0
    sampled: bool = False
    measures: str = "ability"


def record(result: Result) -> dict[str, Any]:
    """A result as a line of ``evals.jsonl``. Numbers that are not finite, such as the error of one item, are null."""
    line = {
        "task": result.task,
        "group": result.group,
        "shots": result.shots,
        "shots_used": result.shots_used,
        "scores": {name: [finite(x) for x in pair] for name, pair in result.scores.items()},
        "count": result.count,
        "left_out": result.left_out,
        "chance": result.chance,
    }
    if result.sampled:
        line["sampled"] = True
    if result.measures != "ability":
        line["measures"] = result.measures
    return line


def table(results: Sequence[Result]) -> str:
    """A line a task and number of shots: metrics with standard errors; then the mean over each group of tasks.

    The tasks of a group may have no metric in common; then there is no mean.
    """
    rows = [_row(result.task, [result], result.scores, result.chance) for result in results]
    for group in dict.fromkeys(result.group for result in results):
        inside = [result for result in results if result.group == group]
        for shots in dict.fromkeys(result.shots for result in inside):
            found = [result for result in inside if result.shots == shots]
            if len({result.task for result in found}) > 1 and (means := _mean(found)):
                rows.append(_row(f"{group}, mean of {len(found)}", found, means, None))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        f"  {name:<{widths[0]}}  {shots:<{widths[1]}}  {items:<{widths[2]}}  {scores}"
        for name, shots, items, scores in rows
    )


def _row(
    name: str, results: Sequence[Result], scores: Mapping[str, tuple[float, float]], chance: float | None
) -> tuple[str, str, str, str]:
    """A line of the table: name, shots, items and scores."""
    shots = f"{results[0].shots:>3} shots"
    used = sum(result.shots_used for result in results) / len(results)
    if abs(used - results[0].shots) > _NEGLIGIBLE:
        shots += f" ({used:.1f} used)"
    items = f"{sum(result.count for result in results):>6,} items"
    if left_out := sum(result.left_out for result in results):
        items += f", {left_out:,} left out"
    texts = [
        f"{metric} {value:.4g} ± {'-' if math.isnan(error) else format(error, '.2g')}"
        for metric, (value, error) in sorted(scores.items())
    ]
    return name, shots, items, "  ".join(texts) + ("" if chance is None else f"  (chance {chance:.3g})")


def _mean(results: Sequence[Result]) -> dict[str, tuple[float, float]]:
    """Mean over tasks of the metrics that all have, and its standard error.

    The tasks' errors are independent. If the tasks are a sample themselves (``sampled``), the error is at least that of
    the sample, from the spread of their scores, since the items of a task share what was drawn for the task.
    """
    metrics = set.intersection(*(set(result.scores) for result in results))
    size = len(results)
    means = {}
    for metric in metrics:
        values, errors = zip(*(result.scores[metric] for result in results), strict=True)
        mean, spread = mean_with_error(values)
        error = math.hypot(*errors) / size
        if all(result.sampled for result in results):
            error = spread if math.isnan(error) else max(error, spread)
        means[metric] = mean, error
    return means


def append(path: epath.Path, step: int, tokens: int, results: Sequence[Result]) -> None:
    """Adds the results of a checkpoint to ``evals.jsonl``; of the same step, task and shots the last line counts."""
    json_lines.append(path, ({"step": step, "tokens": tokens} | record(result) for result in results))
