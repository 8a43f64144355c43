"""What stands before a text: each path that makes prompts or texts asks the tokenizer, and follows its answer."""

import json

import jax
import numpy as np
import pytest
import sentencepiece

from scaling.config import schema as cfg
from scaling.data import tokenizer
from scaling.evaluate.bias import words as bias
from scaling.evaluate.bias.probes import encode_prompts, occupations
from scaling.evaluate.harness.requests import Answers
from scaling.evaluate.scoring.answers import Asking
from scaling.evaluate.scoring.evaluator import Evaluator
from scaling.evaluate.tasks.prompts import Room
from scaling.evaluate.tasks.request import Option, Request
from scaling.generate.sample import continue_texts
from scaling.interop import tokenizer_json
from scaling.interop.logits import compute
from scaling.interop.served import Served
from scaling.model import decoder
from scaling.parallel.mesh import one_device
from tests import tiny

MODEL = tiny.model(vocab_size=258, context_length=24)
NETWORK = tiny.in_float32(MODEL)
EOT, BOS = 256, 257
# name -> (whether the file's template puts BOS before a text, whether the settings beside it name BOS)
KINDS = {"template": (True, True), "named": (False, True), "neither": (False, False)}
START = {"bytes": (EOT,), "template": (BOS,), "named": (), "neither": ()}
FIRST = {"bytes": EOT, "template": BOS, "named": BOS, "neither": EOT}  # after which an empty context begins


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda x: 3 * x, decoder.initialize(MODEL, jax.random.key(0)))


@pytest.fixture(scope="module", params=[*KINDS, "bytes"])
def case(request, tmp_path_factory):
    """Tokenizers with the ids of bytes: our own, and as a tokenizer.json of three kinds."""
    if request.param == "bytes":
        return "bytes", tokenizer.load("bytes")
    pytest.importorskip("tokenizers", reason="the package tokenizers (the extra hf) is not installed")
    framed, named = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    values = json.loads(tokenizer_json.files(tokenizer.load("bytes"))["tokenizer.json"])
    values["added_tokens"].append(values["added_tokens"][0] | {"id": BOS, "content": "<s>"})
    special = {"<s>": {"id": "<s>", "ids": [BOS], "tokens": ["<s>"]}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    parts = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, text] if framed else [text]
    values["post_processor"] = {
        "type": "TemplateProcessing", "single": parts, "pair": [*parts, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": special if framed else {},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(values))
    settings = {"eos_token": tokenizer.END_OF_TEXT} | ({"bos_token": {"content": "<s>"}} if named else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return request.param, tokenizer.load(str(folder / "tokenizer.json"))


def logprobs(params, ids, count):
    """The sum of the log-probabilities of the last ``count`` ids, by a plain forward pass."""
    padded = np.pad(ids[:-1], (0, MODEL.context_length - len(ids) + 1))
    logits = compute(NETWORK, params, padded[None])[0, : len(ids) - 1].astype(np.float64)
    each = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return each[np.arange(len(ids) - 1), ids[1:]][-count:].sum()


def test_what_a_tokenizer_says(case):
    name, words = case
    assert (words.start, words.bos) == (START[name], FIRST[name])
    assert words.template == (() if name == "bytes" else START[name])
    books = tokenizer.load("books")
    assert (books.start, books.bos, books.template) == ((books.eot,), books.eot, ())


def test_a_sentencepiece_model_begins_texts_as_the_settings_beside_it_say(tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat on the mat\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"), model_prefix=str(tmp_path / "tokenizer"), vocab_size=15, minloglevel=2
    )
    path, settings = str(tmp_path / "tokenizer.model"), tmp_path / "tokenizer_config.json"
    words = tokenizer.load(path)
    assert (words.start, words.bos, words.template, words.eot, words.beside()) == ((2,), 2, (), 2, {})
    for values, start, bos in (
        ({"bos_token": "<s>", "add_bos_token": True}, (1,), 1),
        ({"bos_token": {"content": "<s>"}}, (1,), 1),
        ({"bos_token": "<s>", "add_bos_token": False}, (), 1),
        ({"bos_token": None}, (), 2),
    ):
        settings.write_text(json.dumps(values))
        again = tokenizer.load(path)
        assert (again.start, again.bos, again.template) == (start, bos, start)
        assert again.fingerprint == words.fingerprint and again.beside() == {settings.name: settings.read_bytes()}


def request(context, *completions):
    options = tuple(Option(context, completion) for completion in completions)
    return Request("test/0", "task", context, options, 0, "", (), 0, (), True, {}, "items.jsonl:1")


def test_options_and_running_text_of_tasks(case, params):
    name, words = case
    evaluator = Evaluator(NETWORK, params, words)
    assert evaluator.room == Room(words, MODEL.context_length - len(START[name]))
    answers = evaluator._answers
    (with_context, without), _ = answers.options([request("Who?", " I", " you"), request("", "they")], print)
    for (score, _), completion in zip(with_context, (" I", " you"), strict=True):
        ids = [*START[name], *f"Who?{completion}".encode()]
        assert score.logprob == pytest.approx(logprobs(params, ids, len(completion)), abs=1e-4)
    assert without[0][0].logprob == pytest.approx(logprobs(params, [FIRST[name], *b"they"], 4), abs=1e-4)
    text = "a text as long as this, so that there are two windows"  # the second moves by half of 24
    ((found, tokens),) = answers.whole_texts([request(text)], print)
    expected = logprobs(params, [FIRST[name], *text.encode()[:24]], 24)
    for end in (36, 48):
        expected += logprobs(params, [*text.encode()[end - 25 : end]], 12)
    expected += logprobs(params, [*text.encode()[28:]], len(text) - 48)
    assert (found, tokens) == (pytest.approx(expected, abs=1e-3), len(text))
    (plain, _), _ = Evaluator(NETWORK, params, words, asking=Asking(prefix=False))._answers.options(
        [request("Who?", " I")] * 2, print
    )
    assert plain[0][0].logprob == pytest.approx(logprobs(params, [*b"Who? I"], 2), abs=1e-4)


def test_requests_of_the_harness(case, params):
    """Its Hugging Face backend puts before a text what the tokenizer puts there, and BOS or else EOS for no context."""
    name, words = case
    before = [] if name == "bytes" else list(START[name])
    answers = Answers(Served(NETWORK, params, words, one_device(), 7, 700))
    found = answers.loglikelihoods([("Who?", " I"), ("", "they")])
    expected = [logprobs(params, [*before, *b"Who? I"], 2), logprobs(params, [FIRST[name], *b"they"], 4)]
    assert [logprob for logprob, _ in found] == pytest.approx(expected, abs=1e-4)
    whole = [FIRST[name], *before, *b"a text"]  # HFLM.loglikelihood_rolling: a template's token is predicted, too
    assert answers.rolling(["a text"]) == pytest.approx([logprobs(params, whole, len(whole) - 1)], abs=1e-4)
    assert answers._prompt("Who?", 4) == [*before, *b"Who?"]
    assert answers._prompt("", 4) == (before or [FIRST[name]])


def test_bias_probes(case, params, monkeypatch):
    name, words = case
    prompts = [[*START[name], *prompt.prompt.encode()] for prompt in bias.probe_prompts("gender")]
    assert encode_prompts("gender", words, 96, 8) == prompts
    nurse = request("A nurse", " w", " m")
    monkeypatch.setattr(bias, "occupation_requests", lambda variant: [nurse])
    monkeypatch.setattr(bias, "occupation_bias", lambda requests, scores: scores)
    found = occupations(Served(NETWORK, params, words, one_device(), 7, 700))["neutral"]
    expected = [logprobs(params, [*START[name], *f"A nurse{word}".encode()], 2) for word in (" w", " m")]
    assert found == [pytest.approx(expected, abs=1e-4)]


@pytest.mark.usefixtures("on_one_device")
def test_samples_of_training(case, params):
    name, words = case
    sample = cfg.Sample(prompts=("ab", ""), tokens=1, temperature=0.0)
    found = continue_texts(cfg.Config(model=MODEL, compute=tiny.COMPUTE, sample=sample), params, words)
    for text, ids in zip(found, ([*START[name], *b"ab"], list(START[name]) or [FIRST[name]]), strict=True):
        logits = compute(NETWORK, params, np.pad(ids, (0, MODEL.context_length - len(ids)))[None])[0, len(ids) - 1]
        best = int(logits[: words.vocab_size].argmax())
        prompt = bytes(i for i in ids if i < EOT)
        assert text == words.decode([*prompt, *([] if best == EOT else [best])])
