"""The tokenizer of a run: kept with it, found again from anywhere, and never taken for another."""

import json
import shutil

import pytest

from scaling import cli, exit_codes
from scaling.config import schema as cfg
from scaling.data import tokenizer
from scaling.data.tokenizer_base import NAMES
from scaling.data.tokenizer_training import reduce_tokenizer, train_tokenizer
from scaling.runs import tokenizer as run_tokenizer
from tests.data.test_tokenizer import write_ranks


def sentencepiece_model(folder, text):
    (folder / "text.txt").write_text(text * 50)
    return train_tokenizer(str(folder / "text.txt"), 280, folder / f"{len(list(folder.iterdir()))}.model")


def gpt2_directory(folder):
    characters = tokenizer.byte_of_character()
    (folder / "bpe").mkdir()
    vocabulary = {c: i for i, c in enumerate(characters)} | {"ab": 256, "abc": 257, "<|endoftext|>": 258}
    (folder / "bpe/encoder.json").write_text(json.dumps(vocabulary))
    (folder / "bpe/vocab.bpe").write_text("#version: 0.2\na b\nab c\n")
    return folder / "bpe"


@pytest.fixture
def run(tmp_path):
    """Makes a run directory of a tokenizer by name: only what this module reads of it."""

    def make(name, fingerprint=True):
        words = run_tokenizer.find(str(name), tmp_path / "run")
        (tmp_path / "run").mkdir(exist_ok=True)
        run_tokenizer.keep(words, tmp_path / "run")
        values = {"config": {"data": {"tokenizer": str(name)}}}
        return tmp_path / "run", values | ({run_tokenizer.KEY: words.fingerprint} if fingerprint else {})

    return make


@pytest.mark.parametrize("kind", ["bytes", "books", "model", "tiktoken", "directory", "reduced"])
def test_a_run_that_was_moved_has_its_tokenizer(run, tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = kind
    if kind == "model":
        name = sentencepiece_model(tmp_path, "one two three\n").name
    elif kind == "tiktoken":
        write_ranks(tmp_path / "a.tiktoken", [b"th", b"the"])
        name = "a.tiktoken"
    elif kind == "reduced":
        (tmp_path / "text.txt").write_text("the abc")
        name = reduce_tokenizer("books", "text.txt", 8, "a.reduced")[0].name
    elif kind == "directory":
        name = gpt2_directory(tmp_path).name
    run_dir, values = run(name)
    ids = tokenizer.load(name).encode("the abc")
    moved = shutil.move(run_dir, tmp_path / "elsewhere")
    assert any(moved.iterdir()) == (kind not in NAMES)
    if kind not in NAMES:
        path = tmp_path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (tmp_path / "other folder").mkdir()
    monkeypatch.chdir(tmp_path / "other folder")
    for words in (run_tokenizer.load(moved, values), run_tokenizer.find(name, moved)):
        assert words.fingerprint == values[run_tokenizer.KEY]
        assert words.encode("the abc").tolist() == ids.tolist()


def test_a_replaced_tokenizer_is_refused_wherever_it_lies(run, tmp_path):
    own = sentencepiece_model(tmp_path, "one two three\n")
    other = sentencepiece_model(tmp_path, "five six seven\n")
    assert tokenizer.load(str(own)).vocab_size == tokenizer.load(str(other)).vocab_size
    run_dir, values = run(own)
    shutil.copy(own, tmp_path / "same.model")
    assert run_tokenizer.load(run_dir, values, str(tmp_path / "same.model")).name.endswith("same.model")
    with pytest.raises(ValueError, match=f"{other.name} .*--tokenizer"):
        run_tokenizer.load(run_dir, values, str(other))
    with pytest.raises(ValueError, match=r"bytes .*not the one"):
        run_tokenizer.load(run_dir, values, "bytes")
    shutil.copy(other, own)  # of no matter: the run has its copy
    assert run_tokenizer.load(run_dir, values).fingerprint == values[run_tokenizer.KEY]
    shutil.copy(other, run_dir / "tokenizer.model")
    with pytest.raises(ValueError, match=r"run/tokenizer\.model .*restore"):
        run_tokenizer.load(run_dir, values)
    (run_dir / "tokenizer.model").unlink()
    with pytest.raises(ValueError, match=rf"{own.name} .*restore"):
        run_tokenizer.load(run_dir, values)


def test_a_run_from_before_works_and_says_what_is_missing(run, tmp_path):
    own = sentencepiece_model(tmp_path, "one two three\n")
    run_dir, values = run(own, fingerprint=False)
    (run_dir / "tokenizer.model").unlink()
    assert run_tokenizer.load(run_dir, values).fingerprint == tokenizer.load(str(own)).fingerprint
    own.unlink()
    with pytest.raises(FileNotFoundError, match=f"{own.name}.*--tokenizer"):
        run_tokenizer.load(run_dir, values)
    with pytest.raises(FileNotFoundError, match="nothing"):
        run_tokenizer.load(run_dir, values, "nothing")


def test_a_file_beside_a_run_is_not_its_tokenizer(run, tmp_path):
    """Of a run that knows its tokenizer by name."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/tokenizer.model").write_bytes(b"of the user")
    run_dir, values = run("bytes")
    assert run_tokenizer.load(run_dir, values).name == "bytes"
    assert (run_dir / "tokenizer.model").read_bytes() == b"of the user"


@pytest.mark.parametrize(
    "verb",
    [["generate", "--prompt=a"], ["evaluate", "--tasks=arithmetic"], ["bias", "--probes=gender"]],
    ids=lambda verb: verb[0],
)
def test_every_verb_that_reads_a_run_and_text_refuses_another_tokenizer(tmp_path, capsys, verb):
    """Before it looks for a checkpoint."""
    values = {"config": cfg.to_dict(cfg.Config(data=cfg.Data(tokenizer="bytes"))), run_tokenizer.KEY: "0123"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    name, *options = verb
    assert cli.main([name, str(tmp_path), *options]) == exit_codes.USAGE
    assert "the tokenizer bytes is not the one" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
