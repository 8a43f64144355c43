"""The options of ``scaling evaluate``, and what they run."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.evaluate import records

if TYPE_CHECKING:
    from scaling.evaluate.evaluator import Result


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
    from scaling.evaluate.prompts import all_requests, parse_shots
    from scaling.interop.served import load_served

    tasks, shots = find_tasks(options.tasks), parse_shots(options.shots)
    for model in options.models:
        served = load_served(model, options.tokenizer, options.mesh, options.dtype)
        evaluator = Evaluator(served.config, served.params, served.words, served.mesh, not options.no_prefix)
        asked = all_requests(tasks, shots, options.seed, options.data, served.words, evaluator.room, options.limit)
        results = []
        for requests in asked:
            with _bar(f"{requests.task.name}, {requests.shots} shots", len(requests.items)) as watch:
                result = evaluator.evaluate(requests, watch)
            for note in result.notes:
                print(note, file=sys.stderr)
            results.append(result)
            if options.save_samples:
                _save_samples(Path(model), result)
            if served.step is not None and served.tokens is not None:  # at once: a later task may fail
                records.append(Path(model) / "evals.jsonl", served.step, served.tokens, [result])
        if options.json:
            for result in results:
                print(json.dumps({"model": model} | records.record(result)))
        else:
            print(f"{model}\n{records.table(results)}")
    return 0


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
