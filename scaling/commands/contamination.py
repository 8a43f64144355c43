"""The verb ``contamination``: the analysis of GPT-3's appendix C (arXiv 2005.14165) for tasks, a corpus and runs."""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etils import epath

from scaling.evaluate.scoring.metrics import error_text, finite

if TYPE_CHECKING:
    from scaling.evaluate.contamination.search import Contamination, Corpus, Effect, Samples

_GROUPS = ("all", "dirty", "clean")
_FILES = ("contamination.jsonl", "contamination.png", "contamination.svg")  # in a RUN


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what ``contamination`` reads."""
    add = parser.add_argument
    add(
        "models",
        nargs="*",
        metavar="RUN",
        help="runs evaluated with --save_samples: adds the scores of all, dirty and clean items, and a figure",
    )
    add(
        "--tasks",
        required=True,
        metavar="NAMES",
        help="tasks, groups of tasks, or task files (.toml), separated by commas",
    )
    add(
        "--corpus",
        action="append",
        metavar="GLOB",
        help="training text: .txt, .jsonl(.gz), .parquet or books; may be repeated (default: the text of RUN)",
    )
    add("--text_key", metavar="FIELD", help="field that holds the text in records (default: that of RUN, else text)")
    add("--data", metavar="DIR", help="directory with the tasks' local files")
    add("--json", action="store_true", help="print one JSON object for each task (and RUN), and write no files")


def run(options: argparse.Namespace) -> int:
    """Searches the corpus for the tasks' items; prints them, and writes ``RUN/contamination.jsonl`` and a figure.

    Raises:
        FileNotFoundError: no run, no corpus, no task file, no data.
        OSError: a RUN that cannot be written to; raised before the search where possible.
        ValueError: options, samples or files that cannot be used.
    """
    from scaling import durable
    from scaling.evaluate.contamination.search import effects_of, item_texts, search
    from scaling.evaluate.scoring.progress import bar
    from scaling.evaluate.tasks.catalogue import find_tasks
    from scaling.runs.own_files import without_own

    options.models = without_own(options.models)
    name, corpus = _corpus(options)
    texts = item_texts(find_tasks(options.tasks), options.data)
    samples = {
        m: {name: _samples(epath.Path(m), name, items) for name, (items, _) in texts.items()} for m in options.models
    }
    for model in [] if options.json else options.models:
        for file in _FILES:
            durable.check_writable(epath.Path(model) / file)
    with bar(f"searching {name}", corpus.size) as watch:
        done = 0

        def progress(count: int) -> None:
            nonlocal done
            done += count
            watch(done)

        found = search(texts, corpus.documents(progress))
    for model in options.models:
        if missing := [task for task in texts if not samples[model][task]]:
            print(_how_to_sample(model, missing, options.data), file=sys.stderr)
    effects = {model: [effects_of(report, samples[model][report.task]) for report in found] for model in options.models}
    if options.json:
        of_models = [line for model in options.models for line in records(found, name, model, effects[model])]
        for line in of_models if options.models else records(found, name):
            print(json.dumps(line))
        return 0
    print(f"{name}: {found[0].documents:,} documents\n{table(found)}")
    for model in options.models:
        if any(effects[model]):
            print(f"{model}\n{score_table(found, effects[model])}", flush=True)
    for model in options.models:
        with durable.naming(model):
            for path in _write(epath.Path(model), name, found, effects[model]):
                print(path)
    return 0


def table(found: Sequence["Contamination"]) -> str:
    """A table with a line for each task: words in an n-gram, numbers of all, dirty and clean items."""
    rows: list[tuple[str, ...]] = [("task", "words", "items", "dirty", "clean", "% clean")]
    for report in found:
        numbers = (report.n, report.total, len(report.dirty), report.clean)
        rows.append((report.task, *(f"{number:,}" for number in numbers), f"{_percent_clean(report):.1f}"))
    return _aligned(rows)


def score_table(found: Sequence["Contamination"], effects: Sequence[Sequence["Effect"]]) -> str:
    """A table, a line for each task, number of shots and metric: scores with standard errors, clean against all."""
    rows: list[tuple[str, ...]] = [("task", "shots", "metric", "all", "dirty", "clean", "clean against all")]
    for report, its_effects in zip(found, effects, strict=True):
        for effect in its_effects:
            scores = (effect.scores[group] for group in _GROUPS)
            cells = (f"{s.mean:.3f} ± {error_text(s.error)} ({s.count:,})" if s.count else "-" for s in scores)
            error = f"{100 * effect.error:.1f}" if math.isfinite(effect.error) else "-"
            difference = f"{100 * effect.difference:+.1f} ± {error} %"
            shown = difference if math.isfinite(effect.difference) else "-"
            rows.append((report.task, str(effect.shots), effect.metric, *cells, shown))
    return _aligned(rows)


def records(
    found: Sequence["Contamination"],
    corpus: str,
    model: str | None = None,
    effects: Sequence[Sequence["Effect"]] | None = None,
) -> list[dict[str, Any]]:
    """An object for each task, to be written as JSON; NaN becomes None."""
    lines = []
    for number, report in enumerate(found):
        line: dict[str, Any] = {} if model is None else {"model": model}
        line |= {
            "task": report.task,
            "words": report.n,
            "items": report.total,
            "dirty": len(report.dirty),
            "clean": report.clean,
            "percent_clean": _percent_clean(report),
            "corpus": corpus,
            "documents": report.documents,
            "dirty_items": list(report.dirty),
        }
        if effects is not None:
            line["scores"] = [_effect_record(effect) for effect in effects[number]]
        lines.append(line)
    return lines


def _effect_record(effect: "Effect") -> dict[str, Any]:
    groups = {
        group: {"count": score.count, "mean": finite(score.mean), "error": finite(score.error)}
        for group, score in effect.scores.items()
    }
    difference = {"relative_difference": finite(effect.difference), "relative_error": finite(effect.error)}
    return {"shots": effect.shots, "metric": effect.metric} | groups | difference


def _percent_clean(report: "Contamination") -> float:
    return 100 * report.clean / report.total


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned columns: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    )


def _corpus(options: argparse.Namespace) -> tuple[str, "Corpus"]:
    """The name and the files of the corpus that is searched.

    Raises:
        FileNotFoundError: no run, or no such files.
        ValueError: no corpus is named, or the run has none with text.
    """
    from scaling.evaluate.contamination.search import Corpus

    configs = {}
    if options.models:
        from scaling.runs.config_json import read_config_json

        configs = {model: read_config_json(model).get("config") for model in options.models}
    trained = [(model, config["data"]) for model, config in configs.items() if config]
    text_key = options.text_key or (trained[0][1]["text_key"] if len(trained) == 1 else "text")
    if options.corpus:
        return ", ".join(options.corpus), Corpus.find(options.corpus, text_key)
    must = "--corpus=GLOB must name the training text, such as --corpus='corpus/*.jsonl.gz'"
    if len(options.models) != 1:
        raise ValueError(f"without one RUN, whose config says what it was trained on, {must}")
    if not trained:
        raise ValueError(f"{options.models[0]} does not say what it was trained on; {must}")
    ((model, data),) = trained
    patterns = [source for source, _ in data["mixture"]] or [data["train"]]
    for pattern in patterns:
        if Path(pattern).is_dir():
            raise ValueError(f"{model} was trained on {pattern}, a folder of tokens; name its text by --corpus=GLOB")
    try:
        return ", ".join(patterns), Corpus.find(patterns, text_key)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}, on which {model} was trained; name its text by --corpus=GLOB") from None


def _samples(run: epath.Path, task: str, items: Mapping[str, str]) -> "Samples":
    """Scores of a task's items in a run, by shots and metric.

    Raises:
        ValueError: a malformed file, or samples of other items.
    """
    from scaling.evaluate.contamination.search import METRICS
    from scaling.evaluate.scoring.saved_samples import read_samples

    found: Samples = {}
    for shots, samples in read_samples(run, task).items():
        for sample in samples:
            if sample.id not in items or sample.expected.strip() not in items[sample.id]:
                raise ValueError(f"{sample.where}: {sample.id} is not the same item as in the present files of {task}")
            for metric in METRICS:
                if metric in sample.scores:
                    found.setdefault((shots, metric), {})[sample.id] = sample.scores[metric]
    return found


def _how_to_sample(model: str, tasks: Sequence[str], data: str | None) -> str:
    where = "" if data is None else f" --data={data}"
    return (
        f"{model} has no samples with a score for each item of {', '.join(tasks)}; "
        f"`scaling evaluate {model} --tasks={','.join(tasks)}{where} --save_samples` writes them"
    )


def _write(
    run: epath.Path, corpus: str, found: Sequence["Contamination"], effects: Sequence[Sequence["Effect"]]
) -> list[epath.Path]:
    """Writes ``contamination.jsonl``, and the figure if there is something to draw; returns the paths."""
    from scaling.report.contamination_figure import draw

    path = run / "contamination.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in records(found, corpus, None, effects)))
    drawing = draw(found, effects)
    if drawing is None:
        return [path]
    drawing.save(run)
    return [path, run / f"{drawing.name}.png", run / f"{drawing.name}.svg"]
