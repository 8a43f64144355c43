r"""BERT against GPT at equal size and on equal text: fine-tuning, cloze and generation, with and without pre-training.

    python experiments/bert_gpt/compare.py FOLDER --data=SHARED

SHARED has books, wikipedia and c4 (experiments/bert_gpt/pretrain.py), eval/text_cls and eval/llm_foundry, and
more/finetune. For each seed the program

1. pre-trains ``gpt`` and ``bert``, and other arms that are named with ``--arms`` (``ARMS``);
2. asks for hidden words of LAMBADA's passages, in the middle and at the end;
3. fine-tunes on SST-2, CoLA, STS-B, RTE, MRPC and parts of speech, from these weights and from random ones;
4. has both continue passages, and another seed's GPT judge the texts.

What is found goes to ``scores.jsonl`` line by line, and the same command goes on where it ended. ``summary.py`` makes
the figure and the tables of it.

Machine: 2 CPU cores, about an hour and a half. Scores: docs/results/bert_gpt.
"""

import argparse
import functools
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import text_to_text
from etils import epath
from probes import cloze, generation, speed

from scaling import cli, durable
from scaling.align import classify
from scaling.align import task as tasks
from scaling.catalog.sizes import parameters
from scaling.config.schema import freeze
from scaling.data import tokenizer
from scaling.data.chat.dialogues import Skipped
from scaling.runs.json_lines import read_lines
from scaling.runs.measured import Measured

HERE = Path(__file__).parent
WORDS = "books+mask+task"  # what both read texts with
LR, EPOCHS, BATCH = 1e-3, 3, 16
TESTED = 1000  # examples of a task at most, the first ones


class Glue(NamedTuple):
    """A task: where its files lie, the longest row in tokens, how many examples are learned from, and the metric."""

    place: str
    length: int
    trained: int
    metric: str


TASKS = {
    "sst2": Glue("eval/text_cls", 48, 1000, "accuracy"),
    "cola": Glue("more/finetune", 32, 1000, "matthews"),
    "stsb": Glue("more/finetune", 64, 1000, "spearman"),
    "rte": Glue("eval/text_cls", 128, 1000, "accuracy"),
    "mrpc": Glue("more/finetune", 96, 1000, "accuracy"),
    "upos": Glue("more/finetune", 64, 1000, "accuracy"),
}


STARTS = ("pre-trained", "random")


class Arm(NamedTuple):
    """A way of pre-training.

    Attributes:
        shape: what ``pretrain.py`` calls it.
        knobs: in which it differs from that.
        teacher: the arm whose predictions it learns, and with every second block of which it begins; "" = none.
        starts: what fine-tuning begins with; random weights are left out where another arm has the same shape.
        continues: whether it writes texts, too.
    """

    shape: str
    knobs: Mapping[str, object] = MappingProxyType({})
    teacher: str = ""
    starts: Sequence[str] = STARTS
    continues: bool = False


ARMS = {
    "gpt": Arm("gpt", continues=True),
    "bert": Arm("bert", continues=True),
    # As many FLOPs as GPT: BERT's logits are of hidden tokens alone, so the same text costs it 0.57 of them.
    "bert-flops": Arm("bert", {"train.tokens": 2_640_000, "optimizer.warmup_tokens": 264_000}, starts=STARTS[:1]),
    "t5": Arm("t5"),
    "bert4": Arm("bert4"),
    "albert4": Arm("albert4"),
    "electra": Arm("electra"),
    "distil": Arm("bert4", teacher="bert4", starts=STARTS[:1]),
}


class Study:
    """The folder of the experiment.

    Args:
        folder: where everything is written.
        data: folder of the texts and the tasks.
    """

    def __init__(self, folder: Path, data: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.data = folder.resolve(), data.resolve()
        self.once = Measured(epath.Path(self.folder / "scores.jsonl")).once

    def run(self, arm: str, seed: int) -> Path:
        """The run directory of a pre-training."""
        return self.folder / f"{arm}-{seed}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what is not there yet."""
    parser = argparse.ArgumentParser(description="BERT against GPT")
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="where everything is written")
    add("--data", type=Path, required=True, metavar="SHARED", help="folder of the texts and the tasks")
    add("--seeds", type=int, default=3, metavar="N", help="of each training (default: 3)")
    add("--arms", nargs="+", default=["gpt", "bert"], metavar="ARM", choices=ARMS, help=", ".join(ARMS))
    add("--tasks", nargs="+", default=list(TASKS), metavar="TASK", choices=TASKS, help=", ".join(TASKS))
    options = parser.parse_args(arguments)
    study = Study(options.folder, options.data)
    arms, seeds = options.arms, range(options.seeds)
    for seed in seeds:
        for arm in arms:
            study.once(f"pretrain {arm} {seed}", functools.partial(pretrain, study, arm, seed))
        for arm in arms:
            study.once(f"cloze {arm} {seed}", functools.partial(cloze, study.run(arm, seed), study.data))
        for task, arm in itertools.product(options.tasks, arms):
            tune = to_text if arm == "t5" else finetune
            for start in ARMS[arm].starts if arm != "t5" or task in text_to_text.TASKS else ():
                study.once(f"{task} {arm} {start} {seed}", functools.partial(tune, study, arm, start, task, seed))
    for seed, arm in itertools.product(seeds, filter(lambda arm: ARMS[arm].continues, arms)):
        judge = study.run("gpt", (seed + 1) % len(seeds))
        study.once(
            f"generation {arm} {seed}", functools.partial(generation, study.run(arm, seed), judge, study.data, seed)
        )
    if timed := [arm for arm in ("bert4", "albert4", "distil") if arm in arms]:
        study.once("speed", functools.partial(speed, {arm: study.run(arm, 0) for arm in timed}))


def scaling(*arguments: object) -> None:
    """A command of ours, which ends the program if it fails."""
    if code := cli.main([str(argument) for argument in arguments]):
        sys.exit(code)


def knobs(values: dict[str, object]) -> list[str]:
    """Of a command line."""
    return [f"--config.{name}={value}" for name, value in values.items()]


def pretrain(study: Study, arm: str, seed: int) -> dict[str, Any]:
    """Trains a base."""
    shape, own, teacher, *_ = ARMS[arm]
    config = f"--config={HERE / 'pretrain.py'}:{shape},{study.data}"
    values: dict[str, object] = {"workdir": study.run(arm, seed), "seed": seed} | dict(own)
    if teacher:
        start = study.run(teacher, seed)
        scaling("distill", config, *knobs(values | {"start": start, "data.tokenizer": "", "distill.layers": 2}))
    else:
        scaling("train", config, *knobs(values))
    lines = read_lines(epath.Path(study.run(arm, seed) / "metrics.jsonl"))
    last = read_lines(epath.Path(study.run(arm, seed) / "evals.jsonl"))[-1]
    config_json = json.loads((study.run(arm, seed) / "config.json").read_text())
    return {
        "loss": last["loss"],
        "tokens": lines[-1]["tokens"],
        "flops": lines[-1]["flops"],
        "parameters": parameters(freeze(config_json["config"]).model).total,
    }


# Fine-tuning.


def finetune(study: Study, arm: str, start: str, name: str, seed: int) -> dict[str, Any]:
    """Fine-tunes a base, or a model of its shape with random weights, and returns the metrics on the test examples."""
    task, run = prepared(study, name), study.folder / "tuned" / f"{name}-{arm}-{start}-{seed}"
    values: dict[str, object] = {
        "start": study.run(arm, seed),
        "workdir": run,
        "seed": seed,
        "data.tokenizer": WORDS,
        "data.train": study.folder / "tasks" / f"{name}_train.jsonl",
        "data.validation": study.folder / "tasks" / f"{name}_test.jsonl",
        "align.layers": -1 if start == "pre-trained" else -2,
        "align.epochs": EPOCHS,
        "optimizer.peak_lr": LR,
        "train.sequence_length": TASKS[name].length,
        "train.batch_tokens": BATCH * TASKS[name].length,
        "eval.tokens": 2**19,
        "model.init_std": 0.08,  # as in pre-training
        "compute.dtype": "float32",
        "compute.scan_unroll": 2,
        "checkpoint.every_steps": 10_000,
    }
    scaling("align", "finetune", "--config=encoders/finetune", f"--task={task}", *knobs(values))
    found = read_lines(epath.Path(run / "evals.jsonl"))[-1]
    kept: dict[str, Any] = {key: found[key] for key in ("loss", "accuracy", "matthews", "pearson") if key in found}
    if "confusion" in found and len(found["confusion"]) == 2:
        (_, wrong), (missed, hit) = found["confusion"]
        kept["f1"] = 2 * hit / (2 * hit + wrong + missed)
    if name == "stsb":
        classifier = classify.load(run)
        examples = list(tasks.read(classifier.task, str(values["data.validation"]), "test", Skipped(refuses=True)))
        said = classifier(examples, batch_size=64)[:, 0]
        kept["spearman"] = float(np.corrcoef(ranks(said), ranks(np.array([each.label for each in examples])))[0, 1])
    return kept


def to_text(study: Study, arm: str, start: str, name: str, seed: int) -> dict[str, Any]:
    """As ``finetune``, for an encoder with a decoder, which writes the label."""
    prepared(study, name)
    run = study.folder / "tuned" / f"{name}-{arm}-{start}-{seed}"
    files = {}
    for split in ("train", "test"):
        files[split] = study.folder / "tasks" / f"{name}_{split}_pairs.jsonl"
        text_to_text.write(study.folder / "tasks" / f"{name}_{split}.jsonl", files[split], name)
    rows, length = len(read_lines(epath.Path(files["train"]))), TASKS[name].length
    values: dict[str, object] = {
        "workdir": run,
        "seed": seed,
        "data.objective": "pairs",
        "data.mixture": (),
        "data.train": files["train"],
        "data.validation": files["test"],
        "data.source_length": length,
        "train.sequence_length": 4,
        "train.batch_tokens": BATCH * 4,
        "train.tokens": EPOCHS * rows // BATCH * BATCH * 4,
        "optimizer.peak_lr": LR,
        "optimizer.schedule": "linear",
        "optimizer.final_fraction": 0.0,
        "optimizer.warmup_tokens": 0,
        "optimizer.beta2": 0.999,
        "optimizer.weight_decay": 0.01,
        "model.dropout_embedding": 0.1,
        "model.dropout_attention": 0.1,
        "model.dropout_residual": 0.1,
        "eval.every_steps": 0,
        "checkpoint.every_steps": 10_000,
    }
    if start == "pre-trained":
        values["start"] = study.run(arm, seed)
    scaling("train", f"--config={HERE / 'pretrain.py'}:{ARMS[arm].shape},{study.data}", *knobs(values))
    labels, said = text_to_text.read(run, files["test"], name, length)
    if name == "stsb":
        return {"spearman": float(np.corrcoef(ranks(said), ranks(labels))[0, 1])}
    kept = {"accuracy": float(np.mean(said == labels))}
    if TASKS[name].metric == "matthews":
        # Where all answers are one class, the coefficient is 0 by convention.
        kept["matthews"] = float(np.corrcoef(said, labels)[0, 1]) if said.std() else 0.0
    return kept


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks of numbers [n], equal ones at their mean."""
    ordered = np.sort(values)
    return (np.searchsorted(ordered, values) + np.searchsorted(ordered, values, side="right")) / 2


def prepared(study: Study, name: str) -> Path:
    """Writes the task and its examples, in one order of two texts; returns the file of the task."""
    folder, given = study.folder / "tasks", tasks.find(name)
    path = folder / f"{name}.toml"
    if path.exists():
        return path
    folder.mkdir(exist_ok=True)
    for split, most in (("train", TASKS[name].trained), ("test", TESTED)):
        found = itertools.islice(records(given, study.data, split), most)
        durable.replace_text(folder / f"{name}_{split}.jsonl", "".join(json.dumps(each) + "\n" for each in found))
    texts = [f"{{text{i}}}" for i in range(len(given.layout.texts))]
    labels = f"labels = {json.dumps([str(i) for i in range(len(given.names))])}\n" if given.names else ""
    plain = f'texts = {json.dumps(texts)}\nlabel = "{{label}}"\n{labels}'
    durable.replace_text(path, given.text if given.marks else plain)
    return path


def records(given: tasks.Task, data: Path, split: str) -> Iterator[dict[str, Any]]:
    """The sentences of a task with tags, or the examples of another that fit its rows."""
    glue, words = TASKS[given.name], tokenizer.load(WORDS)
    place, skipped = str(data / glue.place), Skipped(refuses=False)
    if given.marks:
        yield from (dict(item.fields) for item in tasks.made(given, place, split, skipped, lambda item: item))
        return
    for example in tasks.read(given, place, split, skipped):
        texts = example.rows[0]
        if len(words.framed(*texts)[0]) <= glue.length:
            label = int(example.label) if given.names else example.label
            yield {f"text{i}": text for i, text in enumerate(texts)} | {"label": label}


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
