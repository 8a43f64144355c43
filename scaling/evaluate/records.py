"""Results of tasks as lines of ``evals.jsonl`` and as a table."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scaling.evaluate.evaluator import Result


def record(result: "Result") -> dict[str, Any]:
    """A result as a line of ``evals.jsonl`` has it."""
    return {
        "task": result.task,
        "group": result.group,
        "shots": result.shots,
        "scores": {name: list(pair) for name, pair in result.scores.items()},
        "count": result.count,
        "chance": result.chance,
    }


def table(results: Sequence["Result"]) -> str:
    """A line a task and number of shots: metrics with standard errors; then the mean over each group of tasks.

    The tasks of a group may have no metric in common; then there is no mean.
    """
    rows = [(result.task, result.shots, result.count, result.scores, result.chance) for result in results]
    for group in dict.fromkeys(result.group for result in results):
        inside = [result for result in results if result.group == group]
        for shots in dict.fromkeys(result.shots for result in inside):
            found = [result for result in inside if result.shots == shots]
            if len({result.task for result in found}) > 1 and (means := _mean(found)):
                rows.append((f"{group}, mean of {len(found)}", shots, sum(r.count for r in found), means, None))
    width = max(len(row[0]) for row in rows)
    lines = []
    for name, shots, count, pairs, guess in rows:
        scores = "  ".join(f"{metric} {value:.4g} ± {error:.2g}" for metric, (value, error) in sorted(pairs.items()))
        chance = "" if guess is None else f"  (chance {guess:.3g})"
        lines.append(f"  {name:<{width}}  {shots:>3} shots  {count:>6,} items  {scores}{chance}")
    return "\n".join(lines)


def _mean(results: Sequence["Result"]) -> dict[str, tuple[float, float]]:
    """Mean over tasks of the metrics that all have; their errors are independent."""
    metrics = set.intersection(*(set(result.scores) for result in results))
    size = len(results)
    return {
        metric: (
            sum(result.scores[metric][0] for result in results) / size,
            math.sqrt(sum(result.scores[metric][1] ** 2 for result in results)) / size,
        )
        for metric in metrics
    }


def append(path: Path, step: int, tokens: int, results: Sequence["Result"]) -> None:
    """Adds the results of a checkpoint to ``evals.jsonl``; of the same step, task and shots the last line counts.

    It only appends, since a training may be writing to the same file.
    """
    lines = [json.dumps({"step": step, "tokens": tokens} | record(result)) + "\n" for result in results]
    with path.open("a") as file:
        file.write("".join(lines))
