"""Tasks on a tiny model: what is chosen, generated and measured, against plain forward passes."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from scaling.data import tokenizer
from scaling.evaluate import records
from scaling.evaluate.evaluator import Evaluator
from scaling.evaluate.prompts import build_requests
from scaling.evaluate.task_file import load
from scaling.generate.generator import Generator
from scaling.generate.sampling import Sampling
from scaling.interop.logits import compute
from scaling.model import decoder
from tests import tiny

WORDS = tokenizer.load("bytes")
MODEL = tiny.model(vocab_size=WORDS.vocab_size, context_length=96, band_width=8)

CHOICES = """
about = "a choice"
few_shot = 2
metrics = ["accuracy", "macro_f1"]
[[source]]
format = "jsonl"
test = "items.jsonl"
[source.fields]
question = "question"
options = "options"
answer = "answer"
[prompt]
context = "{question}"
[scoring]
kind = "choices"
choices = "options"
gold = "{answer}"
"""
ITEMS = [
    {"question": "Who?", "options": ["I am", "you", "a third one"], "answer": "1"},
    {"question": "What is it?", "options": ["a cat", "dogs"], "answer": "0"},
    {"question": "When", "options": ["now", "then", "never", "soon"], "answer": "3"},
]


@pytest.fixture(scope="module")
def params():
    # Larger than at initialization, so that the likelihoods of options differ by more than rounding.
    return jax.tree.map(lambda x: 3 * x, decoder.initialize(MODEL, jax.random.key(0)))


@pytest.fixture(scope="module")
def evaluator(params):
    return Evaluator(MODEL, params, WORDS)


def task(tmp_path, text, items):
    (tmp_path / "task.toml").write_text(text)
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (found,) = load(tmp_path / "task.toml")
    return found


def logprob(params, context, completion):
    """Of the bytes of a completion, after end-of-text and the context."""
    ids = np.asarray([WORDS.eot, *WORDS.encode(context + completion)])
    padded = np.pad(ids[:-1], (0, MODEL.context_length - len(ids) + 1))
    logits = compute(MODEL, params, padded[None])[0, : len(ids) - 1].astype(np.float64)
    each = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return each[np.arange(len(ids) - 1), ids[1:]][-len(WORDS.encode(completion)) :].sum()


@pytest.mark.parametrize("normalisation", ["token", "sum", "unconditional"])
@pytest.mark.parametrize("shots", [0, 2])
def test_the_likeliest_option_is_the_answer(params, evaluator, tmp_path, normalisation, shots):
    extra = f'normalisation = "{normalisation}"\n'
    if normalisation == "unconditional":
        extra += 'answer_context = "Answer:"\n'
    requests = build_requests(task(tmp_path, CHOICES + extra, ITEMS), shots, data=tmp_path)
    result = evaluator.evaluate(requests)
    right = 0
    for request, sample, item in zip(requests.items, result.samples, ITEMS, strict=True):
        scores = []
        for option in request.options:
            score = logprob(params, option.context, option.completion)
            if normalisation == "token":
                score /= len(option.completion.encode())
            elif normalisation == "unconditional":
                score -= logprob(params, "Answer:", option.completion)
            scores.append(score)
        assert sample.log_likelihoods == pytest.approx(scores, abs=1e-4)
        assert sample.answer == request.options[int(np.argmax(scores))].completion
        right += int(np.argmax(scores)) == int(item["answer"])
    mean = right / 3
    assert result.scores["accuracy"] == pytest.approx((mean, math.sqrt(mean * (1 - mean) / 3)))
    assert result.chance == pytest.approx((1 / 3 + 1 / 2 + 1 / 4) / 3)
    assert (result.shots, result.count) == (shots, 3)


def test_a_completion_is_right_if_greedy_decoding_gives_it(params, evaluator, tmp_path):
    text = CHOICES.replace('"accuracy", "macro_f1"', '"accuracy", "perplexity"')
    text = text[: text.index("[scoring]")] + '[scoring]\nkind = "completion"\ntarget = "{answer}"\n'
    prompt = [WORDS.eot, *WORDS.encode("Who?")]
    ((greedy,),) = Generator(MODEL, params, None).generate([prompt], Sampling(tokens=3, temperature=0.0))
    wanted = WORDS.decode(greedy.ids)
    if not wanted.startswith(" "):  # completions begin with a space: take the likeliest after it
        ids = [*prompt, ord(" ")]
        ((rest,),) = Generator(MODEL, params, None).generate([ids], Sampling(tokens=2, temperature=0.0))
        wanted = f" {WORDS.decode(rest.ids)}"
    items = [{"question": "Who?", "options": [], "answer": wanted[1:]}, {"question": "Who?", "answer": "zq"}]
    items[1]["options"] = []
    requests = build_requests(task(tmp_path, text, items), 0, data=tmp_path)
    result = evaluator.evaluate(requests)
    expected = [logprob(params, "Who?", request.options[0].completion) for request in requests.items]
    total = sum(len(request.options[0].completion.encode()) for request in requests.items)
    assert result.scores["perplexity"][0] == pytest.approx(math.exp(-sum(expected) / total), rel=1e-4)
    assert result.samples[1].scores["accuracy"] == 0
    assert result.samples[0].scores["accuracy"] == float(greedy.ids == tuple(WORDS.encode(wanted)))


def test_free_answers_are_those_of_the_beam_search(params, evaluator, tmp_path):
    text = CHOICES.replace('"accuracy", "macro_f1"', '"exact_match", "f1"')
    text = text[: text.index("[scoring]")] + (
        '[scoring]\nkind = "free_form"\ntarget = "{answer}"\nmax_tokens = 5\nbeams = 3\nlength_penalty = 0.6\n'
    )
    requests = build_requests(task(tmp_path, text, ITEMS), 0, data=tmp_path)
    prompts = [[WORDS.eot, *WORDS.encode(request.context)] for request in requests.items]
    sampling = Sampling(tokens=5, beams=3, length_penalty=0.6, stop=("\n",))
    found = Generator(MODEL, params, WORDS).generate(prompts, sampling)
    result = evaluator.evaluate(requests)
    assert [sample.answer for sample in result.samples] == [best.text.strip() for (best,) in found]
    right = dataclasses.replace(
        requests,
        items=tuple(
            dataclasses.replace(request, references=(sample.answer, "other"))
            for request, sample in zip(requests.items, result.samples, strict=True)
        ),
    )
    assert evaluator.evaluate(right).scores["f1"] == (1.0, 0.0)


def test_running_text_is_measured_in_bits_per_byte_by_a_sliding_window(params, evaluator, tmp_path):
    text = CHOICES.replace('"accuracy", "macro_f1"', '"bits_per_byte", "perplexity"')
    text = text[: text.index("[scoring]")] + '[scoring]\nkind = "text"\n'
    short, long = "A short text.", "Once upon a time there was a longer text, " * 8
    for words in (short, long):
        items = [{"question": words, "options": [], "answer": ""}]
        requests = build_requests(task(tmp_path, text, items), 0, data=tmp_path)
        result = evaluator.evaluate(requests)
        ids, half, total = WORDS.encode(words.rstrip()), MODEL.context_length // 2, 0.0
        starts = [0, *range(MODEL.context_length, len(ids), half)]
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            context = ids[max(0, start - (MODEL.context_length - (end - start) + 1)) : start]
            whole = np.asarray([*([WORDS.eot] if start == 0 else []), *context, *ids[start:end]])
            padded = np.pad(whole[:-1], (0, MODEL.context_length - len(whole) + 1))
            logits = compute(MODEL, params, padded[None])[0, : len(whole) - 1].astype(np.float64)
            each = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            total += each[np.arange(len(whole) - 1), whole[1:]][-(end - start) :].sum()
        assert result.samples[0].scores["log_likelihood"] == pytest.approx(total, rel=1e-5)
        assert result.scores["bits_per_byte"][0] == pytest.approx(-total / math.log(2) / len(ids), rel=1e-5)


def test_table_and_lines_of_results(evaluator, tmp_path):
    requests = build_requests(task(tmp_path, CHOICES, ITEMS), 0, data=tmp_path)
    result = evaluator.evaluate(requests)
    two = [dataclasses.replace(result, task="a"), dataclasses.replace(result, task="b")]
    shown = records.table(two)
    assert "task, mean of 2" in shown and "6 items" in shown and "(chance 0.361)" in shown
    record = json.loads(json.dumps(records.record(result)))
    assert record["shots"] == 0 and record["count"] == 3 and set(record["scores"]) == {"accuracy", "macro_f1"}
