"""The options of ``scaling evaluate``, and what they run."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from scaling.evaluate import records

if TYPE_CHECKING:
    from scaling.evaluate.evaluator import Result
    from scaling.interop.served import Served


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what ``evaluate`` reads."""
    add = parser.add_argument
    add("models", nargs="+", metavar="RUN", help="run directories, or Hugging Face folders")
    add("--tasks", required=True, metavar="NAMES", help="tasks, groups of them, or task files (.toml), with commas")
    add("--shots", metavar="LIST", help="demonstrations: numbers and few (default: 0,1,few)")
    add("--data", metavar="DIR", help="directory of the tasks' local files")
    add("--limit", type=int, metavar="N", help="that many items of each task, drawn at random (default: all)")
    add("--seed", type=int, metavar="N", help="of demonstrations and of the items of --limit (default: 0)")
    add(
        "--harness",
        action="store_true",
        help="tasks, shots, prompts and metrics are those of lm-evaluation-harness; --data is a directory of its .yaml "
        "task files, --limit takes the first items, --seed is 1234 unless given",
    )
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
    from scaling.interop.run_directory import read_config_json
    from scaling.interop.served import load_served

    if options.harness and options.no_prefix:
        raise ValueError("--no_prefix belongs to our own tasks; lm-evaluation-harness has its own rule")
    for model in options.models:
        read_config_json(model)  # a model that is not there is told before another is evaluated
    evaluate = _harness(options) if options.harness else _own(options)
    for model in options.models:
        served = load_served(model, options.tokenizer, options.mesh, options.dtype)
        results = []
        for result in evaluate(served):
            for note in result.notes:
                print(note, file=sys.stderr)
            results.append(result)
            if options.save_samples:
                _save_samples(Path(model), result, "harness-" if options.harness else "")
            if served.step is not None and served.tokens is not None:  # at once: a later task may fail
                records.append(Path(model) / "evals.jsonl", served.step, served.tokens, [result])
        if options.json:
            for result in results:
                print(json.dumps({"model": model} | records.record(result)))
        else:
            print(f"{model}\n{records.table(results)}")
    return 0


def _own(options: argparse.Namespace) -> Callable[["Served"], Iterator["Result"]]:
    """Our own tasks, found before any model is loaded; the function gives a model's results one by one."""
    from scaling.evaluate.catalogue import find_tasks
    from scaling.evaluate.evaluator import Evaluator
    from scaling.evaluate.progress import bar
    from scaling.evaluate.prompts import all_requests, parse_shots

    tasks, shots = find_tasks(options.tasks), parse_shots("0,1,few" if options.shots is None else options.shots)

    def evaluate(served: "Served") -> Iterator["Result"]:
        evaluator = Evaluator(served.network, served.params, served.words, served.mesh, not options.no_prefix)
        seed, data, limit = options.seed or 0, options.data, options.limit
        for requests in all_requests(tasks, shots, seed, data, served.words, evaluator.room, limit):
            with bar(f"{requests.task.name}, {requests.shots} shots", len(requests.items)) as watch:
                result = evaluator.evaluate(requests, watch)
            yield result

    return evaluate


def _harness(options: argparse.Namespace) -> Callable[["Served"], Iterator["Result"]]:
    from scaling.evaluate.harness import Tasks

    return Tasks(options.tasks, options.shots, options.data, options.limit, options.seed).evaluate


def _save_samples(run: Path, result: "Result", prefix: str) -> None:
    folder = run / "samples"
    folder.mkdir(exist_ok=True)
    fields = ("id", "prompt", "answer", "expected", "scores", "log_likelihoods")
    lines = [json.dumps({name: getattr(sample, name) for name in fields}) for sample in result.samples]
    (folder / f"{prefix}{result.task}-{result.shots}.jsonl").write_text("".join(line + "\n" for line in lines))
