"""`scaling generate` from options to output, on the tiny GPT-2 folder and a run directory."""

import argparse
import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling import cli
from scaling.commands import generate as command
from scaling.config import schema as cfg
from scaling.config.resolve import check_int8
from scaling.data import tokenizer
from scaling.generate.draft import load_draft
from scaling.generate.generator import Generator
from scaling.generate.sampling import Sampling
from scaling.interop import huggingface, tokenizer_json
from scaling.interop.served import load_decoder
from scaling.model import decoder
from scaling.model.rounded import wide
from scaling.parallel.mesh import make_mesh, one_device
from scaling.runs import tokenizer as run_tokenizer
from scaling.runs.checkpoint import Checkpoints
from scaling.train import state as train_state
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hugging Face folder whose vocabulary the byte tokenizer fits."""
    path = tmp_path_factory.mktemp("hf") / "gpt2"
    model = tiny.model(vocab_size=257, attention_pattern=("dense",))
    huggingface.save(model, decoder.initialize(model, jax.random.key(0)), path)
    return str(path)


def run(capsys, *arguments):
    parser = argparse.ArgumentParser()
    command.add_options(parser)
    assert command.run(parser.parse_args(arguments)) == 0
    return capsys.readouterr().out


def generate(capsys, folder, *arguments):
    return run(capsys, folder, "--tokenizer=bytes", "--tokens=6", "--temperature=0", *arguments)


def test_what_streams_is_what_json_says(capsys, folder):
    (line,) = generate(capsys, folder, "--prompt=ab", "--json").splitlines()
    record = json.loads(line)
    assert record["prompt"] == "ab" and record["finish"] in ("length", "end") and len(record["ids"]) <= 6
    streamed = generate(capsys, folder, "--prompt=ab")
    assert streamed == f"ab{record['text']}\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "\ufeffab\nc\n"),
        ("p.txt", "\ufeffab\r\nc"),
        ("p.jsonl", '\ufeff{"prompt": "ab"}\n\n{"prompt": "c"}\n\n'),
        ("p.jsonl", '{"prompt": "ab"}\r\n  \r\n\ufeff{"prompt": "c"}'),
    ],
)
def test_files_of_prompts_with_byte_order_marks_and_blank_lines(folder, tmp_path, name, content):
    (tmp_path / name).write_text(content, newline="")
    parser = argparse.ArgumentParser()
    command.add_options(parser)
    found = command._prompts(parser.parse_args([folder, f"--prompts={tmp_path / name}"]))
    assert [prompt.messages[-1]["content"] for prompt in found] == ["ab", "c"]


@pytest.mark.slow
def test_files_of_prompts_samples_and_beams(capsys, folder, tmp_path):
    lines, records = tmp_path / "p.txt", tmp_path / "p.jsonl"
    lines.write_text("ab\nc\n")
    records.write_text('{"prompt": "ab"}\n{"prompt": "c"}\n')
    texts = generate(capsys, folder, f"--prompts={lines}", "--json")
    assert texts == generate(capsys, folder, f"--prompts={records}", "--json")
    assert [json.loads(line)["prompt"] for line in texts.splitlines()] == ["ab", "c"]
    arguments = ["--tokenizer=bytes", "--tokens=4", "--prompt=a", "--prompt=b", "--num_samples=2", "--json"]
    for extra in (["--seed=4", "--top_k=5"], ["--beams=3"]):
        found = [json.loads(line) for line in run(capsys, folder, *arguments, *extra).splitlines()]
        assert [(r["number"], r["sample"]) for r in found] == [(0, 0), (0, 1), (1, 0), (1, 1)]
        assert all(("score" in r) == ("--beams=3" in extra) for r in found)


def test_more_beams_than_texts_give_what_there_is(capsys, folder):
    arguments = ["--tokenizer=bytes", "--prompt=a", "--tokens=1", "--beams=300", "--num_samples=300", "--json"]
    found = [json.loads(line) for line in run(capsys, folder, *arguments).splitlines()]
    assert len(found) == 257 and len({tuple(r["ids"]) for r in found if r["finish"] != "end"}) == 256
    assert sum(math.exp(r["score"]) for r in found) == pytest.approx(1, abs=1e-5)  # every token, once


@pytest.mark.slow
def test_a_run_directory_knows_its_tokenizer(capsys, tmp_path):
    config = tiny.config({"vocab_size": 257, "dtype": "bfloat16"})
    config = cfg.freeze(cfg.to_dict(config) | {"data": {"tokenizer": "bytes"}})
    state = train_state.create_state(config, make_mesh(cfg.Mesh(), jax.devices()[:1]))
    (tmp_path / "config.json").write_text(json.dumps({"config": cfg.to_dict(config)}))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {"config": cfg.to_dict(config), "tokens": 0})
    checkpoints.close()
    plain = run(capsys, str(tmp_path), "--prompt=ab", "--tokens=4", "--temperature=0")
    assert plain.startswith("ab")
    assert run(capsys, str(tmp_path), "--prompt=ab", "--tokens=4", "--temperature=0", "--mesh=fsdp=2,tensor=4") == plain


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "needs --prompt"),
        (["--prompt="], "prompt is empty"),
        (["--prompt=a", "--tokens=-1"], "tokens=-1 .*1"),
        (["--prompt=a", "--batch_size=0"], "--batch_size=0"),
        (["--prompt=a", "--tokens=40"], "context of 32"),
        (["--prompt=" + "a" * 40], "no room .*32"),
        (["--prompt=a", "--mesh=fsdp"], "'fsdp' must be AXIS=DEVICES"),
        (["--prompt=a", "--mesh=tensor=8"], "tensor=8 .*num_heads of 4"),
        (["--prompt=a", "--mesh=data=3"], "--mesh=data=3 .*8 devices .*cpu_devices=N"),
        (["--prompt=a", "--length_penalty=2"], "belong to a beam search"),
        (["--prompt=a", "--early_stopping"], "belong to a beam search"),
        (["--prompt=a", "--temperature=1e-39"], "temperature=1e-39 .*1e-30"),
        *(
            (["--prompt=a", f"--{name}={value}"], f"^{name}=.* must be ")
            for name in ("temperature", "repetition_penalty", "top_p")
            for value in ("1e39", "inf", "nan")
        ),
        *((["--prompt=a", f"--{name}={10**22}"], f"^{name}=.* must be ") for name in ("seed", "num_samples", "beams")),
        (["--prompt=\udcff"], "--prompt.*Unicode"),
        (["--prompts=EMPTY"], r"empty\.txt.*no prompts"),
        (["--prompts=DIGITS"], r"digits\.jsonl:2 .*number"),
        (["--prompts=BAD"], r"bad\.jsonl:2: .*'prompt'"),
    ],
)
def test_mistakes_are_sentences(folder, tmp_path, arguments, words):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "x"}\n{"text": "y"}\n')
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    digits = tmp_path / "digits.jsonl"
    digits.write_text('{"prompt": "x"}\n{"prompt": "x", "n": %s}\n' % ("9" * 5000))
    parser = argparse.ArgumentParser()
    command.add_options(parser)
    arguments = [
        argument.replace("BAD", str(bad)).replace("EMPTY", str(empty)).replace("DIGITS", str(digits))
        for argument in arguments
    ]
    with pytest.raises(ValueError, match=words):
        command.run(parser.parse_args([folder, "--tokenizer=bytes", *arguments]))


def test_what_is_missing_is_named(folder, tmp_path):
    parser = argparse.ArgumentParser()
    command.add_options(parser)
    with pytest.raises(ValueError, match="no tokenizer"):
        command.run(parser.parse_args([folder, "--prompt=a"]))
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        command.run(parser.parse_args([str(tmp_path / "nowhere"), "--prompt=a"]))
    with pytest.raises(FileNotFoundError, match="nothing"):
        command.run(parser.parse_args([folder, "--prompts=nothing.txt"]))


def test_a_draft_changes_no_greedy_text(capsys, folder):
    plain = json.loads(generate(capsys, folder, "--prompt=ab", "--json"))
    found = json.loads(generate(capsys, folder, "--prompt=ab", "--json", f"--draft={folder}", "--draft_tokens=2"))
    assert found.pop("passes") == 3  # the prompt, then 3 and 2 tokens
    assert "passes" not in plain and found == plain


@pytest.mark.slow
def test_a_draft_with_a_part_of_the_vocabulary(capsys, folder, tmp_path, monkeypatch):
    """From `tokenizer reduce` and a run to texts; `--tokenizer` is the model's, and the run has its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("ab" * 40 + "xyz")
    assert cli.main(["tokenizer", "reduce", "bytes", "text.txt", "--vocab_size=4", "--output=a.reduced"]) == 0
    assert capsys.readouterr().out == "a.reduced: 4 tokens, with 96.4% of those of the texts\n"
    words = tokenizer.load("a.reduced")
    config = tiny.config({"vocab_size": 4})
    config = cfg.freeze(cfg.to_dict(config) | {"data": {"tokenizer": "a.reduced"}})
    values = {"config": cfg.to_dict(config), "tokenizer_fingerprint": words.fingerprint}
    state = train_state.create_state(config, one_device())
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(1, state, {**values, "tokens": 0})
    checkpoints.close()
    (tmp_path / "run/config.json").write_text(json.dumps(values))
    run_tokenizer.keep(words, tmp_path / "run")
    (tmp_path / "a.reduced").unlink()

    plain = json.loads(generate(capsys, folder, "--prompt=ab", "--json"))
    found = json.loads(generate(capsys, folder, "--prompt=ab", "--json", "--draft=run", "--draft_tokens=2"))
    assert 3 <= found.pop("passes") <= 6 and found == plain
    served = load_decoder(folder, "bytes")
    assert load_draft("run", served, 2).vocabulary.tolist() == [97, 98, 256]
    assert load_draft("run", dataclasses.replace(served, words=tokenizer.load("bytes+chat")), 2).vocabulary.size == 3
    with pytest.raises(ValueError, match="neither the model's, 'books', nor a part of that"):
        load_draft("run", dataclasses.replace(served, words=tokenizer.load("books")), 2)
    with pytest.raises(ValueError, match=r"is a part of another one, which tokenizer\.json cannot say"):
        tokenizer_json.files(words)


def test_8_bits_are_those_of_the_knob(capsys, folder):
    served = load_decoder(folder, "bytes")
    compute = dataclasses.replace(served.network.compute, decode_int8="both")
    generator = Generator(cfg.Network(served.network.model, compute), served.params, served.words)
    want = generator.generate([[*served.words.start, *b"ab"]], Sampling(tokens=6, temperature=0))[0][0]
    for draft in ([], [f"--draft={folder}"]):
        found = json.loads(generate(capsys, folder, "--prompt=ab", "--json", "--int8=both", *draft))
        assert tuple(found["ids"]) == want.ids
    # What scoring reads are the same numbers, in float32.
    narrow, made = load_decoder(folder, "bytes", int8="weights").params, generator.params
    for name, summed in (("out", (0, 1)), ("up", (0,))):
        part = "attention" if name == "out" else "mlp"
        stored = wide(made["blocks"][1][part][name], summed, jnp.float32)
        np.testing.assert_allclose(narrow["blocks"][part][name][1], stored, rtol=1e-6)
    with pytest.raises(ValueError, match=r"in RUN, config.compute.quantization='int8' must be 'none'.*='weights'"):
        check_int8(cfg.Compute(quantization="int8", decode_int8="weights"), "--int8=weights: in RUN, ")
    check_int8(cfg.Compute(quantization="int8", decode_int8="cache"))


def test_what_a_draft_cannot_is_refused(capsys, folder):
    for options, message in (
        (["--draft_tokens=2"], "--draft_tokens belongs to --draft=SMALL"),
        (["--draft=x", "--beams=2", "--temperature=1"], "--draft and --beams=2 exclude each other"),
        (["--draft=x", "--source=a"], "--draft is for decoders alone"),
        ([f"--draft={folder}", "--draft_tokens=0"], "--draft_tokens=0 must be 1 or more"),
    ):
        prompt = [] if "--source=a" in options else ["--prompt=ab"]
        with pytest.raises(ValueError, match=message):
            generate(capsys, folder, *prompt, *options)
    served = load_decoder(folder, "bytes")
    with pytest.raises(ValueError, match="has the tokenizer 'bytes', which is neither the model's, 'books', nor"):
        load_draft(folder, dataclasses.replace(served, words=tokenizer.load("books")), 4, "bytes")
