r"""Tables and the figure of what ``compare.py`` found: ``table.md``, ``bert_gpt.png`` and ``bert_gpt.svg``.

    python experiments/bert_gpt/summary.py FOLDER

FOLDER has ``scores.jsonl``.
"""

import functools
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from compare import STARTS, TASKS, Glue
from etils import epath
from matplotlib.axes import Axes

from scaling import durable
from scaling.report.style import BLUE, INK, VERMILION, Drawing, canvas
from scaling.runs.json_lines import read_lines

Found = dict[str, Any]  # name -> line of scores.jsonl
NAMES = {
    "gpt": "GPT",
    "bert": "BERT",
    "bert-flops": "BERT, GPT's FLOPs",
    "t5": "T5",
    "electra": "ELECTRA",
    "bert4": "BERT, 4 layers",
    "albert4": "ALBERT, 4 layers",
    "distil": "DistilBERT, 2 layers",
}
DRAWN = {"gpt": BLUE, "bert": VERMILION}


def numbers(found: Found, arm: str, what: str, *keys: str) -> list[float]:
    """A number of each seed, as far as it is there; ``what`` is the beginning of the name, and the start after it."""
    name, _, start = what.partition("/")
    names = (" ".join(filter(None, (name, arm, start, str(seed)))) for seed in range(9))
    each = (functools.reduce(lambda line, key: line.get(key, {}), keys, found.get(name, {})) for name in names)
    return [value for value in each if value != {}]


def measured(found: Found) -> dict[str, Glue]:
    """The tasks of which something is there."""
    return {task: glue for task, glue in TASKS.items() if any(name.startswith(f"{task} ") for name in found)}


def shown(values: Sequence[float], factor: float = 1.0, digits: int = 1) -> str:
    """Mean and standard error over seeds."""
    if not values:
        return ""
    error = f" ± {factor * np.std(values, ddof=1) / len(values) ** 0.5:.{digits}f}" if len(values) > 1 else ""
    return f"{factor * np.mean(values):.{digits}f}{error}"


def table(found: Found, arms: Sequence[str]) -> str:
    """Markdown: pre-training, fine-tuning, cloze and generation."""
    lines = ["| | loss | FLOPs | seconds |", "|---|---|---|---|"]
    for arm in arms:
        loss, flops, seconds = (numbers(found, arm, "pretrain", key) for key in ("loss", "flops", "seconds"))
        lines.append(f"| {NAMES[arm]} | {shown(loss, digits=3)} | {np.mean(flops):.2e} | {shown(seconds, digits=0)} |")
    columns = [(arm, start) for arm in arms for start in STARTS]
    lines += ["", "| task | " + " | ".join(f"{NAMES[arm]}, {start}" for arm, start in columns) + " |"]
    lines.append("|---" * (1 + len(columns)) + "|")
    for task, glue in measured(found).items():
        cells = [shown(numbers(found, arm, f"{task}/{start}", glue.metric), 100) for arm, start in columns]
        lines.append(f"| {task}, {glue.metric} | " + " | ".join(cells) + " |")
    lines += ["", "| hidden words | " + " | ".join(NAMES[arm] for arm in arms) + " |", "|---" * (1 + len(arms)) + "|"]
    for what, (key, factor) in itertools.product(CLOZE, (("accuracy", 100.0), ("nats", 1.0))):
        cells = [shown(numbers(found, arm, "cloze", what, key), factor, 1 if factor > 1 else 2) for arm in arms]
        lines.append(f"| {what}, {key} | " + " | ".join(cells) + " |")
    lines += ["", "| texts | nats a token, by GPT | repeated pairs, % |", "|---|---|---|"]
    for arm, way in WAYS:
        nats, pairs = (numbers(found, arm, "generation", way, key) for key in ("nats", "repeated"))
        lines.append(f"| {WAYS[arm, way]} | {shown(nats, digits=2)} | {shown(pairs, 100)} |")
    return "\n".join(lines) + "\n"


CLOZE = ("middle before", "middle whole", "last")
WAYS = {
    ("gpt", "people"): "people",
    ("gpt", "sampling"): "GPT, sampled",
    ("bert", "a mask at the end"): "BERT, a mask at the end",
    ("bert", "masks to the end"): "BERT, masks to the end",
}


def draw(found: Found, arms: Sequence[str]) -> Drawing:
    """Fine-tuning, hidden words and continued texts: means, and a point for each seed."""
    tasks = measured(found)
    with canvas(columns=3, width=14.0, height=4.8) as (figure, (tuned, cloze, texts)):

        def bar(axes: Axes, place: float, values: Sequence[float], colour: str, pale: bool, label: str = "") -> None:
            axes.bar(place, np.mean(values), 0.18, color=colour, alpha=0.3 if pale else 0.85, label=label or None)
            axes.plot([place] * len(values), values, "o", color=INK, ms=2.5)

        for number, (task, glue) in enumerate(tasks.items()):
            for column, (arm, start) in enumerate(itertools.product(arms, STARTS)):
                values = [100 * each for each in numbers(found, arm, f"{task}/{start}", glue.metric)]
                label = f"{NAMES[arm]}, {start}" if not number else ""
                if values:
                    bar(tuned, number + 0.2 * (column - 1.5), values, DRAWN[arm], start == "random", label)
        tuned.set(title="Fine-tuned", ylabel="accuracy, correlation, %")
        tuned.set_xticks(range(len(tasks)), [f"{task}\n{glue.metric}" for task, glue in tasks.items()], fontsize=7.5)
        for number, (what, arm) in enumerate(itertools.product(CLOZE, arms)):
            if values := [100 * each for each in numbers(found, arm, "cloze", what, "accuracy")]:
                bar(cloze, number // len(arms) + 0.2 * (number % len(arms) - 0.5), values, DRAWN[arm], False)
        cloze.set(title="Hidden word is the likeliest", ylabel="accuracy, %")
        cloze.set_xticks(
            range(3), ["in the middle,\nby the text before", "in the middle,\nby all of the text", "last word"]
        )
        for number, (arm, way) in enumerate(WAYS):
            if values := numbers(found, arm, "generation", way, "nats"):
                bar(texts, number, values, INK if way == "people" else DRAWN[arm], way == "people")
        texts.set(title="Continued texts, judged by another GPT", ylabel="nats a token")
        texts.set_xticks(range(len(WAYS)), [label.replace(", ", ",\n") for label in WAYS.values()], fontsize=8)
        tuned.legend(loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=2, fontsize=8)
    return Drawing("bert_gpt", "Fine-tuning, hidden words and continued texts of BERT and GPT.", figure)


if __name__ == "__main__":
    folder = epath.Path(sys.argv[1])
    scores = {line["name"]: line for line in read_lines(folder / "scores.jsonl")}
    there = [arm for arm in NAMES if f"pretrain {arm} 0" in scores]
    draw(scores, [arm for arm in DRAWN if arm in there]).save(folder)
    durable.replace_text(Path(folder / "table.md"), table(scores, there))
