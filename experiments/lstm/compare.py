r"""Transformer against LSTM: the ladder of ``sweeps/cpu_ladder.py`` with an LSTM, loss by place, and copying.

    python experiments/lstm/compare.py FOLDER

For each Transformer whose record lies in ``docs/results/cpu_ladder/runs``, as far as ``--flops`` goes, an LSTM of two
layers and as many parameters is trained on the same text, in the same order, in the same batches. The program

1. trains the LSTMs, each with three learning rates, of which the best by the loss on the held-out text is kept (the
   Transformers have one rate for all);
2. trains the Transformer of one run again, for its loss by place in the row beside the LSTM's;
3. trains both to copy a string that stands some tokens back.

What is found goes to ``scores.jsonl`` line by line, and the same command goes on where it ended. At the end it draws
``lstm.png`` and writes ``table.md``.

Machine: 2 CPU cores, about an hour. Losses: docs/results/lstm.
"""

import argparse
import functools
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from figure import draw, table
from lstm import Rows, apply, count, flops_per_token, initialize, mean_loss, of_sequences, train, width_of

from scaling import cli, durable
from scaling.catalog.sizes import parameters
from scaling.config import default_config
from scaling.config.resolve import resolve
from scaling.config.schema import Config, Network, freeze
from scaling.data import tokenizer
from scaling.data.loader import training_set, validation_set
from scaling.interop.served import load_served
from scaling.model import decoder
from scaling.parallel.mesh import one_device
from scaling.runs.json_lines import read_lines
from scaling.runs.measured import Measured

RUNS = Path(__file__).parents[2] / "docs/results/cpu_ladder/runs"
VOCABULARY = 257  # bytes, and the end of a text
RATES = (1e-2, 2e-2, 4e-2)
BY_PLACE = "l4-d64-t4.55m"
SCORES = "scores.jsonl"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what is not there yet, and draws it."""
    parser = argparse.ArgumentParser(description="Transformer against LSTM")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where everything is written")
    parser.add_argument("--flops", type=float, default=7e12, help="of the largest run (default: 7e12)")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    study, runs = Measured(epath.Path(options.folder / SCORES)), ladder(options.flops)
    for (name, run), rate in itertools.product(runs.items(), RATES):
        study.once(f"{name} {rate}", functools.partial(trained, run, rate))
    study.once("by place", functools.partial(transformer, BY_PLACE, runs[BY_PLACE]["config"]))
    study.once("copying, LSTM", functools.partial(copying, "lstm"))
    study.once("copying, Transformer", functools.partial(copying, "transformer"))
    found = study.found | {name: best(study, name) for name in runs}
    draw(found, runs).save(epath.Path(options.folder))
    durable.replace_text(options.folder / "table.md", table(found, runs))


def ladder(most: float) -> dict[str, dict[str, Any]]:
    """The runs of the Transformer of at most so many FLOPs, the smallest budget first: config, loss and FLOPs."""
    runs = {}
    for path in RUNS.glob("*/config.json"):
        config = freeze(json.loads(path.read_text())["config"])
        last = [read_lines(epath.Path(path.parent / name))[-1] for name in ("evals.jsonl", "metrics.jsonl")]
        runs[path.parent.name] = {"config": config, "loss": last[0]["loss"], "flops": last[1]["flops"]}
    ordered = sorted(runs.items(), key=lambda run: (run[1]["flops"], run[1]["config"].model.d_model))
    return {name: run for name, run in ordered if run["flops"] <= most}


def best(study: Measured, name: str) -> dict[str, Any]:
    """The LSTM of a run with the lowest loss."""
    return min((study.found[f"{name} {rate}"] for rate in RATES), key=lambda line: line["loss"])


def batches(config: Config) -> Iterator[Rows]:
    """The batches of a run, as it read them."""
    words = tokenizer.load(config.data.tokenizer)
    data = training_set(config.data, words, config.train.sequence_length, config.seed)
    rows = config.train.batch_tokens // config.train.sequence_length
    for first in itertools.count(0, rows):
        yield of_sequences(np.stack([data[i] for i in range(first, first + rows)]))


def held_out(config: Config) -> np.ndarray:
    """The validation sequences of a run, int32 [N, T + 1]."""
    words, length = tokenizer.load(config.data.tokenizer), config.train.sequence_length
    found = validation_set(config.data, words, length)
    return np.stack([found[i] for i in range(min(len(found), config.eval.tokens // length))])


def trained(run: dict[str, Any], rate: float) -> dict[str, Any]:
    """An LSTM in the place of a run's Transformer."""
    config = run["config"]
    width = width_of(parameters(config.model).total, VOCABULARY)
    steps = config.train.tokens // config.train.batch_tokens
    params = initialize(jax.random.key(config.seed), width, VOCABULARY)
    params = train(apply, params, batches(config), steps, rate)
    loss, places = mean_loss(apply, params, held_out(config))
    return {
        "loss": loss,
        "width": width,
        "parameters": count(width, VOCABULARY),
        "flops": flops_per_token(width, VOCABULARY) * steps * config.train.batch_tokens,
        "rate": rate,
        "places": [round(float(each), 4) for each in places],
    }


def transformer(name: str, config: Config) -> dict[str, Any]:
    """The Transformer of a run, trained by ``scaling train``; its loss in all and by place in the row."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [f"--config={RUNS / name / 'config.json'}", f"--config.workdir={folder}/run"]
        if code := cli.main(["train", *arguments]):
            sys.exit(code)
        served = load_served(f"{folder}/run")
    with jax.set_mesh(served.mesh):
        loss, places = mean_loss(logits_of(served.network), served.params, held_out(config))
    return {"run": name, "loss": loss, "places": [round(float(each), 4) for each in places]}


def logits_of(network: Network) -> Callable[[Any, jax.Array], jax.Array]:
    """A decoder as a function of parameters and tokens."""

    def logits(params: Any, tokens: jax.Array) -> jax.Array:
        model = decoder.merge(network, params)
        return model.logits(model(tokens))

    return logits


# Copying.

LETTERS, GAP, MARK, START, PAD = 26, 26, 27, 28, 29
STRING, FARTHEST, STEPS = 8, 108, 4000
COPY_WIDTH, COPY_ROWS = 64, 32


def strings(rng: np.random.Generator, gaps: np.ndarray) -> Rows:
    """Rows of a start, a string of letters, a gap, a mark and the string again, of which the copy counts."""
    length = 2 * STRING + FARTHEST + 2
    ids, weights = np.full((len(gaps), length + 1), PAD, np.int32), np.zeros((len(gaps), length), np.float32)
    for row, gap in enumerate(gaps):
        string = rng.integers(LETTERS, size=STRING)
        text = np.concatenate([[START], string, np.full(gap, GAP), [MARK], string])
        ids[row, : len(text)] = text
        weights[row, len(text) - 1 - STRING : len(text) - 1] = 1
    return Rows(ids[:, :-1], ids[:, 1:], weights)


def copying(kind: str) -> dict[str, Any]:
    """Share of copied letters that are right, by the length of the gap, after training on all gaps."""
    config = default_config()
    model = {"num_layers": 4, "d_model": COPY_WIDTH, "num_heads": 4, "context_length": 128, "positions": "rotary"}
    config.model.update(model | {"attention_pattern": ("dense",), "vocab_size": PAD + 1, "init_std": 0.08})
    config.compute.dtype = "float32"
    network = resolve(freeze(config), vocab_size=PAD + 1, device_count=1).network
    size = parameters(network.model).total
    function, rng, found = apply, np.random.default_rng(0), {}

    def drawn() -> Iterator[Rows]:
        while True:
            yield strings(rng, rng.integers(FARTHEST + 1, size=COPY_ROWS))

    with jax.set_mesh(one_device()):
        for rate in (1e-3, 3e-3, 1e-2):
            if kind == "lstm":
                width = width_of(size, PAD + 1)
                params = initialize(jax.random.key(0), width, PAD + 1)
            else:
                function = logits_of(network)
                params = decoder.initialize(network.model, jax.random.key(0))
            params = train(function, params, drawn(), STEPS, rate)
            accuracy = {gap: right(function, params, gap) for gap in (0, 4, 8, 16, 32, 64, FARTHEST)}
            found[rate] = accuracy
    best = max(found, key=lambda rate: sum(found[rate].values()))
    return {"rate": best, "accuracy": found[best], "all": found, "parameters": size}


def right(function: Any, params: Any, gap: int) -> float:
    """Share of the letters of 256 new strings that are the likeliest token, with the letters before them given."""
    rows = strings(np.random.default_rng(1), np.full(256, gap))
    said = np.asarray(jax.jit(function)(params, rows.tokens)).argmax(-1)
    return float(((said == rows.targets) * rows.weights).sum() / rows.weights.sum())


if __name__ == "__main__":
    main()
