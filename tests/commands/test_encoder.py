"""An encoder through the command line: training, resuming, filling, vectors, files of Hugging Face, refusals."""

import json
import re

import numpy as np
import pytest

from scaling import cli, exit_codes
from tests.commands.test_train import curve, train, weights

ENCODER = [
    "--config.data.objective=mlm",
    "--config.data.tokenizer=bytes+mask",
    "--config.model.causal=False",
    "--config.optimizer.schedule=constant",
    "--config.model.norm=post",
    "--config.model.embedding_norm=True",
    "--config.model.activation=gelu",
    "--config.model.token_types=2",
    "--config.model.head_transform=True",
    "--config.model.logit_bias=True",
    "--config.model.attention_pattern=('dense',)",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder") / "run"
    assert train(folder, *ENCODER) == 0
    return folder


def said(capsys, *argv):
    code = cli.main([str(each) for each in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.slow
def test_it_learns_and_goes_on_to_the_same_numbers(run, tmp_path):
    lines = curve(run)
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    assert train(tmp_path / "b", *ENCODER, "--config.checkpoint.every_steps=10", "--config.train.tokens=5120") == 0
    assert train(tmp_path / "b", *ENCODER, "--config.checkpoint.every_steps=10") == 0
    assert curve(tmp_path / "b")[-1]["loss"] == lines[-1]["loss"]
    assert weights(tmp_path / "b") == weights(run)


@pytest.mark.slow
def test_fill(run, capsys):
    code, out, _ = said(capsys, "fill", run, "--prompt=He went <|mask|>o the <|mask|>oor.", "--top=3", "--json")
    assert code == 0
    places = json.loads(out)["places"]
    assert [len(place) for place in places] == [3, 3]
    for place in places:
        assert [each["probability"] for each in place] == sorted((e["probability"] for e in place), reverse=True)
        assert 0 < sum(each["probability"] for each in place) <= 1
    code, out, _ = said(capsys, "fill", run, "--prompt=<|mask|>")
    assert code == 0 and out.startswith("<|mask|>\n  1: ")


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["mean", "first", "last"])
def test_vectors_do_not_depend_on_the_batch(run, tmp_path, capsys, pool):
    texts = ["a", "It was a dark night.", "the end of the story."]
    (tmp_path / "t.txt").write_text("".join(f"{text}\n" for text in texts))
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    given = [f"--pool={pool}", "--normalize"]
    one, other = tmp_path / "1.npy", tmp_path / "2.npy"
    assert said(capsys, "embed", run, f"--texts={tmp_path / 't.txt'}", f"--output={one}", *given)[0] == 0
    more = [f"--texts={tmp_path / 't.jsonl'}", "--text_key=body", "--batch_size=1"]
    assert said(capsys, "embed", run, f"--output={other}", *more, *given)[0] == 0
    found = np.load(one)
    assert found.shape[0] == 3
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(found, np.load(other), atol=1e-5)


@pytest.mark.slow
def test_files_of_hugging_face_give_the_same_logits(run, tmp_path, capsys):
    ids = np.arange(20)[None] + 60
    np.save(tmp_path / "ids.npy", ids)
    np.save(tmp_path / "mask.npy", (np.arange(20) < 12).astype(int)[None])
    found = []
    assert said(capsys, "export", run, tmp_path / "hf")[0] == 0
    for model in (run, tmp_path / "hf"):
        given = [f"--{name}={tmp_path / name}.npy" for name in ("ids", "mask", "output")]
        assert said(capsys, "logits", model, *given)[0] == 0
        found.append(np.load(tmp_path / "output.npy"))
    np.testing.assert_allclose(*found, atol=1e-5)  # products of another size: the run pads its vocabulary
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["generate", "RUN", "--prompt=a"], "is an encoder, which continues no texts"),
        (["chat", "RUN"], "is an encoder, which continues no texts"),
        (["fill", "RUN", "--prompt=a"], r"nothing is hidden; write <\|mask\|> in the place of a token"),
        (["fill", "RUN", "--prompt=<|mask|>", "--top=0"], r"top=0 must be in \[1, "),
        (["fill", "RUN", "--prompt=" + "a" * 200 + "<|mask|>"], "the text has 203 tokens; the model reads"),
        (["embed", "RUN", "--texts=T", "--output=v.txt"], "must end in .npy"),
        (["embed", "RUN", "--texts=T", "--output=v.npy", "--pool=max"], "must be one of mean, first, last, pooler"),
        (["embed", "RUN", "--texts=T", "--output=v.npy", "--pool=pooler"], "the model has no pooler"),
    ],
)
def test_refusals(run, tmp_path, monkeypatch, capsys, argv, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "T").write_text("a text\n")
    code, _, err = said(capsys, *[str(run) if each == "RUN" else each for each in argv])
    assert code == exit_codes.USAGE
    assert len(err.splitlines()) == 1 and re.search(sentence, err), err
    assert not list(tmp_path.glob("*.npy"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["--config.data.tokenizer=bytes"], r"the tokenizer 'bytes' has no token <\|mask\|>"),
        (
            ["--config.model.causal=True"],
            "config.model.head_transform=True must be False",
        ),
        (["--config.data.objective=next_token"], "config.model.causal=False must be True"),
        (["--config.eval.tasks=lambada"], "config.eval.tasks='lambada' must be '' with config.model.causal=False"),
        (["--config.noise.rate=0"], r"config.noise.rate=0.0 must be in \(0, 1\]"),
        (["--config.noise.random=0.6", "--config.noise.kept=0.6"], "config.noise.kept=0.6 must be at most 0.4"),
    ],
)
def test_trainings_that_are_refused(tmp_path, capsys, changes, sentence):
    assert train(tmp_path / "run", *ENCODER, *changes) == exit_codes.USAGE
    assert re.search(sentence, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()
