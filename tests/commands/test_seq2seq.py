"""An encoder beside a decoder through the command line: each objective learns, and goes on where it ended."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from scaling import cli, exit_codes
from scaling.config import schema as cfg
from scaling.config.files import load
from scaling.config.schema import freeze
from scaling.data import tokenizer
from scaling.data.noise.spans import lengths
from scaling.generate.generator import Completion, Generator
from scaling.interop import huggingface, tokenizer_files, tokenizer_json
from scaling.model import decoder
from scaling.runs.config_json import read_config_json
from tests.commands.test_train import ROOT, curve, train, weights

BOTH = [
    "--config.model.encoder_layers=2",
    "--config.model.attention_pattern=('dense',)",
    "--config.optimizer.schedule=constant",
    "--config.log.batch_hash=true",
    "--config.checkpoint.every_steps=10",
]
T5 = [
    "--config.data.objective=span_corruption",
    "--config.data.tokenizer=bytes+sentinels",
    "--config.data.source_length=32",
    "--config.train.sequence_length=8",
    "--config.train.batch_tokens=128",
    "--config.train.microbatch_sequences=8",
    "--config.train.ramp_tokens=0",
    "--config.train.tokens=2560",
]
BART = ["--config.data.objective=denoising", "--config.data.tokenizer=bytes+mask", "--config.train.tokens=8192"]


def hashes(run):
    return [json.loads(line)["batch_hash"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(("knobs", "half"), [(T5, 1280), (BART, 5120)], ids=["spans", "denoising"])
def test_it_learns_and_goes_on_to_the_same_numbers(tmp_path, knobs, half):
    assert train(tmp_path / "a", *BOTH, *knobs) == 0
    lines = curve(tmp_path / "a")
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    assert train(tmp_path / "b", *BOTH, *knobs, f"--config.train.tokens={half}") == 0
    assert train(tmp_path / "b", *BOTH, *knobs) == 0
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b") and len(set(hashes(tmp_path / "a"))) == len(lines)
    assert curve(tmp_path / "b")[-1]["loss"] == lines[-1]["loss"]
    assert weights(tmp_path / "b") == weights(tmp_path / "a")
    stored = read_config_json(tmp_path / "a")
    config = freeze(stored["config"])
    noise = lengths(32, config.noise) if knobs is T5 else None
    taken = noise.tokens if noise else config.train.sequence_length - 1
    assert stored["unique_tokens"] == config.train.tokens // config.train.sequence_length * taken


def test_wrong_lengths_are_refused(tmp_path, capsys):
    wrong = ["--config.train.sequence_length=16", "--config.train.batch_tokens=128"]
    assert train(tmp_path / "run", *BOTH, *T5, *wrong) == exit_codes.USAGE
    assert "config.train.sequence_length=16 must be 8, the target of a source of 32" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_shipped_lengths_are_t5_s():
    for size, source in (("small", 512), ("xl,T5-1.1", 512), ("base,mT5", 1024)):
        config = load(f"seq2seq/t5:{size}")
        assert config.data.source_length == source
        assert config.train.sequence_length == lengths(source, config.noise).target


def test_the_programs_write_what_their_configs_read(tmp_path):
    made = [sys.executable, ROOT / "experiments/seq2seq/strings.py", tmp_path]
    subprocess.run(made, check=True, cwd=tmp_path)
    for task, of in (("copy", lambda text: text), ("reverse", lambda text: text[::-1])):
        records = [json.loads(line) for line in (tmp_path / f"{task}.jsonl").read_text().splitlines()]
        assert all(record["target"] == of(record["source"]) for record in records)
        assert len({record["source"] for record in records}) == len(records) == 50_000
        assert load(f"seq2seq/strings:{task}").data.train == f"strings/{task}.jsonl"


@pytest.mark.slow
def test_a_small_transformer_learns_copies(tmp_path):
    words = np.random.default_rng(0).integers(97, 123, (2000, 4)).astype(np.uint8)
    texts = [bytes(word).decode() for word in words]
    (tmp_path / "copy.jsonl").write_text("".join(f'{{"source": "{text}", "target": "{text}"}}\n' for text in texts))
    knobs = [
        "--config.data.objective=pairs", f"--config.data.train={tmp_path / 'copy.jsonl'}",
        "--config.train.sequence_length=8", "--config.train.tokens=102400", "--config.train.ramp_tokens=0",
        "--config.train.microbatch_sequences=64", "--config.eval.every_steps=0", "--config.checkpoint.every_steps=0",
        "--config.log.batch_hash=false", "--config.optimizer.peak_lr=3e-3",
    ]  # fmt: skip
    assert train(tmp_path / "run", *BOTH, *knobs) == 0
    # Without the source a letter costs ln 26 nats, four of five targets are letters: 2.6.
    assert curve(tmp_path / "run")[-1]["loss"] < 2.0


@pytest.fixture
def bart(tmp_path):
    """A BART whose tokenizer has the ids of bytes, 256 for the end, and <s>=257 before each text."""
    pytest.importorskip("tokenizers", reason="the package tokenizers (the extra hf) is not installed")
    folder = tmp_path / "bart"
    model = dataclasses.replace(huggingface.load(ROOT / "tests/fixtures/seq2seq/bart")[0], vocab_size=258)
    huggingface.save(model, decoder.initialize(model, jax.random.key(0)), folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"eos_token_id": 256, "decoder_start_token_id": 256, "forced_bos_token_id": 257}
    (folder / "config.json").write_text(json.dumps(config))
    values = json.loads(tokenizer_json.files(tokenizer.load("bytes"))["tokenizer.json"])
    values["added_tokens"].append(values["added_tokens"][0] | {"id": 257, "content": "<s>"})
    parts = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    values["post_processor"] = {
        "type": "TemplateProcessing", "single": parts, "pair": [*parts, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [257], "tokens": ["<s>"]}},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(values))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": tokenizer.END_OF_TEXT}))
    return folder


def test_an_answer_begins_as_the_targets_of_training(bart, monkeypatch, capsys):
    given = []

    def generate(self, prompts, sampling, batch_size, sources):
        given.append((prompts, [source.tolist() for source in sources]))
        return [[Completion((), "", "end")]]

    monkeypatch.setattr(Generator, "generate", generate)
    assert cli.main(["generate", str(bart), "--source=a"]) == 0
    assert cli.main(["generate", str(bart), "--source=a", "--prompt=b"]) == 0
    source = [[257, 97, 256]]
    assert given == [([[256, 257]], source), ([[256, 257, 98]], source)]


def test_an_export_says_what_begins_and_ends_a_target(bart, tmp_path):
    assert cli.main(["import", str(bart), str(tmp_path / "run")]) == 0
    assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    names = ("decoder_start_token_id", "forced_bos_token_id", "eos_token_id")
    values = json.loads((tmp_path / "out/config.json").read_text())
    assert [values[name] for name in names] == [256, 257, 256]
    model = cfg.Model(vocab_size=257, encoder_layers=1)
    made = tokenizer_files.of_run(tmp_path, {"config": {"data": {"tokenizer": "bytes"}}}, model).config
    assert [made[name] for name in (*names, "pad_token_id", "forced_eos_token_id")] == [256, None, 256, 256, None]
