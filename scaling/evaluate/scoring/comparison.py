"""Several models side by side, such as one before and after alignment: scores, and what changed on the same items."""

import math
from collections.abc import Mapping, Sequence

from scaling.evaluate.scoring.metrics import mean_with_error
from scaling.evaluate.scoring.records import Result


def comparison(models: Mapping[str, Sequence[Result]]) -> str:
    """A line for each task, number of shots and metric: the score of each model, and the last less the first.

    The error of a difference is that of the differences between the same items, where a metric has a score for each
    item; else errors are taken as independent, which is too much for the same items.

    Args:
        models: name -> results. What not all have is left out; nothing is shown of fewer than two models.
    """
    by_model = [{(r.group, r.task, r.shots): r for r in results} for results in models.values()]
    shared = [key for key in by_model[0] if all(key in found for found in by_model[1:])] if len(by_model) > 1 else []
    if not shared:
        return ""
    rows = [["", "shots", "", *models, "last - first"]]
    for key in shared:
        results = [found[key] for found in by_model]
        for metric in sorted(set.intersection(*(set(result.scores) for result in results))):
            scores = [_text(*result.scores[metric]) for result in results]
            rows.append([key[1], str(key[2]), metric, *scores, _text(*_change(results[0], results[-1], metric), "+")])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _text(value: float, error: float, sign: str = "") -> str:
    return f"{value:{sign}.4f} ± {'-' if math.isnan(error) else format(error, '.4f')}"


def _change(first: Result, last: Result, metric: str) -> tuple[float, float]:
    """The difference of a score, with its standard error."""
    (before, its_error), (after, error) = first.scores[metric], last.scores[metric]
    each = [
        {sample.id: sample.scores[metric] for sample in result.samples if metric in sample.scores}
        for result in (first, last)
    ]
    if each[0] and each[0].keys() == each[1].keys() and len(each[0]) == first.count:
        return mean_with_error([each[1][item] - each[0][item] for item in each[0]])
    return after - before, math.hypot(its_error, error)
