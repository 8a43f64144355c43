"""The verb ``evaluate``: computes zero-, one- and few-shot scores of models."""

import argparse
import functools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from etils import epath

from scaling import durable
from scaling.commands.int8 import INT8, INT8_HELP
from scaling.evaluate.scoring import records
from scaling.runs.own_files import without_own
from scaling.runs.paths import EVALS, SAMPLES

if TYPE_CHECKING:
    from scaling.evaluate.scoring.records import Result
    from scaling.evaluate.tasks.kind import Rate
    from scaling.evaluate.tasks.task import Task
    from scaling.interop.served import Served


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what ``evaluate`` reads."""
    add = parser.add_argument
    add("models", nargs="+", metavar="RUN", help="run directories, or Hugging Face folders")
    add(
        "--tasks",
        required=True,
        metavar="NAMES",
        help="tasks, groups of tasks, or task files (.toml), separated by commas",
    )
    add("--shots", metavar="LIST", help="numbers of demonstrations; few = the number of each task (default: 0,1,few)")
    add("--data", metavar="DIR", help="directory with the tasks' local files")
    add("--limit", type=int, metavar="N", help="evaluate N items of each task, drawn at random (default: all)")
    add("--seed", type=int, metavar="N", help="seed of the demonstrations and of the items of --limit (default: 0)")
    add(
        "--harness",
        action="store_true",
        help="tasks, shots, prompts and metrics are those of lm-evaluation-harness; --data is a directory of its .yaml "
        "task files, --limit takes the first items, --seed is 1234 unless given",
    )
    add(
        "--no_prefix",
        action="store_true",
        help="put nothing before each text, as lm-evaluation-harness does for GPT-2 (default: what the tokenizer says; "
        "for ours an end-of-text token)",
    )
    add(
        "--chat",
        action="store_true",
        help="ask in a dialogue, framed by the model's chat template; demonstrations are earlier turns (lm_eval's "
        "--apply_chat_template --fewshot_as_multiturn)",
    )
    add(
        "--classifier",
        metavar="RUNS",
        help="runs of `align finetune`, separated by commas, that rate the answers of tasks such as toxicity",
    )
    add("--tokenizer", metavar="NAME", help="gpt2, bytes, books or a path (default: the run's, or the folder's files)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="type of the matrix products")
    add("--int8", choices=INT8, default="none", help=INT8_HELP)
    add("--mesh", default="", metavar="AXES", help="devices to use, as in fsdp=2,tensor=4 (default: one device)")
    add("--save_samples", action="store_true", help="write prompts and answers to RUN/samples/TASK-SHOTS.jsonl")
    add("--json", action="store_true", help="print one JSON object for each task and number of shots, for programs")


def run(options: argparse.Namespace) -> int:
    """Evaluates each model on each task with each number of shots, prints the scores and appends to ``evals.jsonl``.

    If something fails, the scores that were computed before are printed.

    Raises:
        FileNotFoundError: no model, no task file, no data.
        OSError: a run that cannot be written to; raised before anything is computed where possible.
        ValueError: options or data that cannot be used.
    """
    from scaling.evaluate.scoring.comparison import comparison
    from scaling.interop.served import load_decoder
    from scaling.runs.config_json import read_config_json

    if options.harness and options.no_prefix:
        raise ValueError("--no_prefix cannot be used with --harness, which has its own rule for prefixes")
    if options.chat and options.no_prefix:
        raise ValueError("--no_prefix cannot be used with --chat, since the chat template says what stands before")
    for name in ("chat", "classifier"):
        if options.harness and getattr(options, name):
            raise ValueError(f"--{name} cannot be used with --harness; it is for tasks of our own")
    models = without_own(options.models)
    for model in models:  # all are checked before the first is evaluated
        is_run = "config" in read_config_json(model)
        for path in _places(epath.Path(model), is_run, options.save_samples):
            durable.check_writable(path)
    evaluate = _harness(options) if options.harness else _own(options)
    failed: OSError | None = None
    every: dict[str, list[Result]] = {}
    for model in models:
        served = load_decoder(model, options.tokenizer, options.mesh, options.dtype, None, options.int8)
        results = every[model] = []
        try:
            for result in evaluate(served):
                for note in result.notes:
                    print(note, file=sys.stderr)
                results.append(result)
                failed = (
                    _write(epath.Path(model), result, served, options) or failed
                )  # now, because a later task may fail
                if options.json:
                    print(json.dumps({"model": model} | records.record(result)), flush=True)
        finally:
            if results and not options.json:
                how = ", asked in dialogues" if options.chat else ""
                how += "" if options.int8 == "none" else f", {options.int8} in 8 bits"
                print(f"{model}{how}\n{records.table(results)}", flush=True)
    if not options.json and (text := comparison(every)):
        print(text, flush=True)
    if failed is not None:
        raise failed
    return 0


def _places(run: epath.Path, is_run: bool, save_samples: bool) -> list[epath.Path]:
    """The files that will be written."""
    return [run / EVALS] * is_run + [run / SAMPLES / "of-a-task.jsonl"] * save_samples


def _write(run: epath.Path, result: "Result", served: "Served", options: argparse.Namespace) -> OSError | None:
    """Writes samples and the line of a result; returns an error instead of raising it: scores are printed first."""
    failed = None
    try:
        if options.save_samples:
            with durable.naming(run / SAMPLES):
                _save_samples(run, result, "harness-" if options.harness else "chat-" if options.chat else "")
    except OSError as error:
        failed = error
    try:
        # Lines of a step are of the model as it was trained; what rounding makes of it is only printed.
        if served.step is not None and served.tokens is not None and options.int8 == "none":
            with durable.naming(run / EVALS):
                records.append(run / EVALS, served.step, served.tokens, [result])
    except OSError as error:
        failed = error
    return failed


def _own(options: argparse.Namespace) -> Callable[["Served"], Iterator["Result"]]:
    """Finds our own tasks, before any model is loaded; the returned function yields the results of a model."""
    from scaling.evaluate.scoring.answers import Asking
    from scaling.evaluate.scoring.evaluator import Evaluator
    from scaling.evaluate.scoring.progress import bar
    from scaling.evaluate.tasks.catalogue import find_tasks
    from scaling.evaluate.tasks.prompts import all_requests, check_dialogue, parse_shots

    tasks, shots = find_tasks(options.tasks), parse_shots("0,1,few" if options.shots is None else options.shots)
    if options.chat:
        for task in tasks:
            check_dialogue(task)
    raters = _raters(options.classifier, tasks)
    seed, data, limit = options.seed or 0, options.data, options.limit

    def evaluate(served: "Served") -> Iterator["Result"]:
        if options.chat and not (served.words.chat_template or served.template):
            raise ValueError(f"the tokenizer {served.words.name!r} has no chat template; evaluate without --chat")
        if options.chat and served.network.model.encoder_layers:
            raise ValueError("--chat: a decoder beside an encoder reads no dialogues; evaluate without --chat")
        asking = Asking(not options.no_prefix, served.chat() if options.chat else None, raters, seed)
        evaluator = Evaluator(served.network, served.params, served.words, served.mesh, asking)
        for requests in all_requests(tasks, shots, seed, data, evaluator.room, limit):
            with bar(f"{requests.task.name}, {requests.shots} shots", len(requests.items)) as watch:
                result = evaluator.evaluate(requests, watch)
            yield result

    return evaluate


def _raters(classifiers: str | None, tasks: "Sequence[Task]") -> dict[str, "Rate"]:
    """For each class that a task needs the probability of: what gives it, of the first classifier that knows it.

    Raises:
        FileNotFoundError: no such run.
        ValueError: a run that is no classifier, a class that none of them knows, or classifiers for nothing.
    """
    wanted = {task.scoring.rated_by: task.name for task in tasks if task.scoring.rated_by}
    paths = [path.strip() for path in (classifiers or "").split(",") if path.strip()]
    if paths and not wanted:
        raise ValueError(f"--classifier={classifiers}: no answers of these tasks are rated")
    if not wanted:
        return {}
    from scaling.align import classify

    loaded = [classify.load(path) for path in paths]
    found: dict[str, Rate] = {}
    for label, name in wanted.items():
        knows = [c for c in loaded if label.casefold() in map(str.casefold, c.task.names)]
        knows += [c for c in loaded if not c.task.form.classes]
        if not knows:
            have = "; ".join(f"{path} has {', '.join(c.task.names)}" for path, c in zip(paths, loaded, strict=True))
            raise ValueError(
                f"task {name} needs the probability of the class {label!r}; give a run of `scaling align finetune` "
                f"that has it with --classifier=RUN{f' ({have})' if have else ''}"
            )
        found[label] = functools.partial(classify.rate, knows[0], label)
    return found


def _harness(options: argparse.Namespace) -> Callable[["Served"], Iterator["Result"]]:
    from scaling.evaluate.harness.adapter import Tasks

    return Tasks(options.tasks, options.shots, options.data, options.limit, options.seed).evaluate


def _save_samples(run: epath.Path, result: "Result", prefix: str) -> None:
    folder = run / SAMPLES
    folder.mkdir(exist_ok=True)
    fields = ("id", "prompt", "answer", "expected", "scores", "log_likelihoods")
    lines = [json.dumps({name: getattr(sample, name) for name in fields}) for sample in result.samples]
    (folder / f"{prefix}{result.task}-{result.shots}.jsonl").write_text("".join(line + "\n" for line in lines))
