"""Pairs through the command line, in one text and in two languages: training, resuming, refusals."""

import json
import re

import pytest

from scaling import exit_codes
from tests.commands.test_encoder import ENCODER
from tests.commands.test_train import curve, train, weights

ALONE = [
    "--config.data.objective=pairs",
    "--config.data.tokenizer=bytes+mask",
    "--config.eval.every_steps=10",
    "--config.optimizer.schedule=constant",
]
PREFIX = [*ALONE, "--config.model.prefix_lm=true", "--config.model.attention_pattern=('dense',)"]
LANGUAGES = [*ENCODER, "--config.data.objective=tlm"]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    records = [{"source": f"{i} apples", "target": f"{i} Äpfel"} for i in range(50)]
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return f"--config.data.train={path}"


@pytest.mark.slow
@pytest.mark.parametrize("knobs", [ALONE, PREFIX, LANGUAGES], ids=["one text", "prefix", "two languages"])
def test_it_learns_and_goes_on_to_the_same_numbers(given, tmp_path, knobs):
    every = ["--config.log.batch_hash=true", "--config.checkpoint.every_steps=10"]
    assert train(tmp_path / "a", given, *knobs, *every) == 0
    lines = curve(tmp_path / "a")
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    evals = [json.loads(line) for line in (tmp_path / "a/evals.jsonl").read_text().splitlines()]
    assert evals[-1]["loss"] < lines[0]["loss"]
    assert train(tmp_path / "b", given, *knobs, *every, "--config.train.tokens=5120") == 0
    assert train(tmp_path / "b", given, *knobs, *every) == 0
    hashes = [
        [json.loads(line)["batch_hash"] for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in "ab"
    ]
    assert hashes[0][-5:] == hashes[1][-5:] and len(set(hashes[0])) == len(hashes[0])
    assert curve(tmp_path / "b")[-1]["loss"] == lines[-1]["loss"]
    assert weights(tmp_path / "b") == weights(tmp_path / "a")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["--config.data.tokenizer=bytes"], r"'bytes' has no token <\|separator\|>"),
        (["--config.train.sequence_length=8"], "pairs.jsonl:1: source and target do not fit"),
        (["--config.data.target_key=de"], "no field 'de'; there are 'source', 'target'"),
        (["--config.data.objective=span_corruption"], "config.model.encoder_layers=0 must be at least 1"),
        (["--config.data.objective=prefix"], "config.model.prefix_lm=False must be True with config.data.objective"),
        (
            [*PREFIX[-2:], "--config.data.objective=next_token"],
            "config.model.prefix_lm=True must be False with config.data.objective='next_token'",
        ),
        (["--config.noise.span=0.5"], "config.noise.span=0.5 must be at least 1"),
        (["--config.train.label_smoothing=1"], r"config.train.label_smoothing=1.0 must be in \[0, 1\)"),
    ],
)
def test_trainings_that_are_refused(given, tmp_path, capsys, changes, sentence):
    assert train(tmp_path / "run", given, *ALONE, *changes) == exit_codes.USAGE
    assert re.search(sentence, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()
