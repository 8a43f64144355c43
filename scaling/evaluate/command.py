"""The options of ``scaling evaluate``, and what they run."""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scaling.evaluate.evaluator import Evaluator, Result
    from scaling.evaluate.prompts import Requests
    from scaling.evaluate.task import Task


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what ``evaluate`` reads."""
    add = parser.add_argument
    add("models", nargs="+", metavar="RUN", help="run directories, or Hugging Face folders")
    add("--tasks", required=True, metavar="NAMES", help="tasks, groups of them, or task files (.toml), with commas")
    add("--shots", default="0,1,few", metavar="LIST", help="demonstrations: numbers and few (default: 0,1,few)")
    add("--data", metavar="DIR", help="directory of the tasks' local files")
    add("--limit", type=int, metavar="N", help="that many items of each task, drawn at random (default: all)")
    add("--seed", type=int, default=0, metavar="N", help="of demonstrations and of the items of --limit (default: 0)")
    add("--no_prefix", action="store_true", help="no end-of-text token before each text, as lm-evaluation-harness")
    add("--tokenizer", metavar="NAME", help="gpt2, bytes, books or a path (default: the run's, or the folder's files)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the matrix products")
    add("--mesh", default="", metavar="AXES", help="devices to use, as in fsdp=2,tensor=4 (default: one device)")
    add("--save_samples", action="store_true", help="write prompts and answers to RUN/samples/TASK-SHOTS.jsonl")
    add("--json", action="store_true", help="one JSON object a task and number of shots, for programs")


def run(options: argparse.Namespace) -> int:
    """Evaluates each model on each task at each number of shots; prints, and writes to the runs' ``evals.jsonl``.

    Raises:
        FileNotFoundError: no model, no task file, no data.
        ValueError: options or data that cannot be used.
    """
    from scaling.evaluate.catalogue import find_tasks
    from scaling.evaluate.evaluator import Evaluator
    from scaling.interop.served import load_served

    tasks = find_tasks(options.tasks)
    shots = [part.strip() for part in options.shots.split(",") if part.strip()]
    if not shots or any(part != "few" and not part.isdecimal() for part in shots):
        raise ValueError(f"--shots={options.shots} must be numbers and 'few', with commas, such as 0,1,few")
    for model in options.models:
        served = load_served(model, options.tokenizer, options.mesh, options.dtype)
        evaluator = Evaluator(served.config, served.params, served.words, served.mesh, not options.no_prefix)
        results = []
        for requests in _requests(tasks, shots, evaluator, served.words, options):
            with _bar(f"{requests.task.name}, {requests.shots} shots", len(requests.items)) as watch:
                result = evaluator.evaluate(requests, watch)
            for note in result.notes:
                print(note, file=sys.stderr)
            results.append(result)
            if options.save_samples:
                _save_samples(Path(model), result)
        if served.step is not None and served.tokens is not None:
            _append(Path(model), served.step, served.tokens, results)
        if options.json:
            for result in results:
                print(json.dumps({"model": model} | record(result)))
        else:
            print(f"{model}\n{table(results)}")
    return 0


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


def table(results: list["Result"]) -> str:
    """A line a task and number of shots: metrics with standard errors; then the mean over each group of tasks."""
    rows = [(result.task, result.shots, result.count, result.scores, result.chance) for result in results]
    for group in dict.fromkeys(result.group for result in results):
        inside = [result for result in results if result.group == group]
        for shots in dict.fromkeys(result.shots for result in inside):
            found = [result for result in inside if result.shots == shots]
            if len({result.task for result in found}) > 1:
                rows.append((f"{group}, mean of {len(found)}", shots, sum(r.count for r in found), _mean(found), None))
    width = max(len(row[0]) for row in rows)
    lines = []
    for name, shots, count, pairs, guess in rows:
        scores = "  ".join(f"{metric} {value:.4g} ± {error:.2g}" for metric, (value, error) in sorted(pairs.items()))
        chance = "" if guess is None else f"  (chance {guess:.3g})"
        lines.append(f"  {name:<{width}}  {shots:>3} shots  {count:>6,} items  {scores}{chance}")
    return "\n".join(lines)


def _mean(results: list["Result"]) -> dict[str, tuple[float, float]]:
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


def _requests(
    tasks: list["Task"], shots: list[str], evaluator: "Evaluator", words: Any, options: argparse.Namespace
) -> Iterator["Requests"]:
    from scaling.evaluate.prompts import build_requests

    for task in tasks:
        seen = set()
        for wanted in shots:
            requests = build_requests(
                task,
                wanted if wanted == "few" else int(wanted),
                options.seed,
                options.data,
                words,
                evaluator.room,
                options.limit,
            )
            if requests.shots not in seen:  # "few" may be one of the numbers
                seen.add(requests.shots)
                yield requests


def _append(run: Path, step: int, tokens: int, results: list["Result"]) -> None:
    """Adds lines to ``evals.jsonl``, in place of older ones of the same step, task and shots."""
    path = run / "evals.jsonl"
    new = [{"step": step, "tokens": tokens} | record(result) for result in results]
    replaced = {(step, line["task"], line["shots"]) for line in new}
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if _key(line) not in replaced]
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(line + "\n" for line in [*kept, *map(json.dumps, new)]))
    partial.replace(path)


def _key(line: str) -> tuple[Any, Any, Any] | None:
    try:
        values = json.loads(line)
    except ValueError:
        return None
    return (values.get("step"), values.get("task"), values.get("shots")) if isinstance(values, dict) else None


def _save_samples(run: Path, result: "Result") -> None:
    folder = run / "samples"
    folder.mkdir(exist_ok=True)
    fields = ("id", "prompt", "answer", "expected", "scores", "log_likelihoods")
    lines = [json.dumps({name: getattr(sample, name) for name in fields}) for sample in result.samples]
    (folder / f"{result.task}-{result.shots}.jsonl").write_text("".join(line + "\n" for line in lines))


class _bar:
    """A progress bar on a terminal, as a context manager that gives the function to report to."""

    def __init__(self, title: str, total: int):
        self._title, self._total = title, total
        self._bar: Any = None

    def __enter__(self) -> Callable[[int], Any]:
        if not sys.stderr.isatty():
            return lambda done: None
        from rich.console import Console
        from rich.progress import Progress

        self._bar = Progress(console=Console(stderr=True), transient=True)
        task = self._bar.add_task(self._title, total=self._total)
        self._bar.start()
        return lambda done: self._bar.update(task, completed=done)

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()
