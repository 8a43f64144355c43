"""Tasks on a tiny model: what is chosen, generated and measured, against plain forward passes."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from scaling.data import tokenizer
from scaling.evaluate.scoring import records
from scaling.evaluate.scoring.evaluator import Evaluator
from scaling.evaluate.scoring.likelihoods import Score, Scorer
from scaling.evaluate.tasks.catalogue import find_tasks
from scaling.evaluate.tasks.file import load
from scaling.evaluate.tasks.prompts import build_requests
from scaling.generate.generator import Generator
from scaling.generate.sampling import Sampling
from scaling.interop.logits import compute
from scaling.model import decoder
from tests import tiny

WORDS = tokenizer.load("bytes")
MODEL = tiny.model(vocab_size=WORDS.vocab_size, context_length=96, band_width=8)
NETWORK = tiny.in_float32(MODEL)

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
    return Evaluator(NETWORK, params, WORDS)


class Counting(Scorer):
    """Counts tokens and computes nothing."""

    def _run(self, rows, length):
        self.work.real += sum(row.length for row in rows)
        self.work.padded += self._row_count(rows, length) * length
        return [[Score(-1.0, 1, False)] * len(row.places) for row in rows]


def counting(context_length=MODEL.context_length):
    network = tiny.in_float32(dataclasses.replace(MODEL, context_length=context_length))
    evaluator = Evaluator(network, {}, WORDS)
    evaluator._answers.scorer = Counting(network, {})
    return evaluator


def task(tmp_path, text, items):
    (tmp_path / "task.toml").write_text(text)
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (found,) = load(tmp_path / "task.toml")
    return found


def logprob(params, context, completion):
    """Of the bytes of a completion, after end-of-text and the context."""
    ids = np.asarray([WORDS.eot, *WORDS.encode(context + completion)])
    padded = np.pad(ids[:-1], (0, MODEL.context_length - len(ids) + 1))
    logits = compute(NETWORK, params, padded[None])[0, : len(ids) - 1].astype(np.float64)
    each = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return each[np.arange(len(ids) - 1), ids[1:]][-len(WORDS.encode(completion)) :].sum()


@pytest.mark.parametrize("normalisation", ["token", "sum", "unconditional"])
@pytest.mark.parametrize("shots", [0, 2])
def test_the_likeliest_option_is_the_answer(params, evaluator, tmp_path, normalisation, shots):
    extra = f'normalisation = "{normalisation}"\n'
    if normalisation == "unconditional":
        extra += 'answer_context = "Answer:"\n'
    text = CHOICES.replace("macro_f1", "accuracy_per_token") + extra
    requests = build_requests(task(tmp_path, text, ITEMS), shots, data=tmp_path)
    result = evaluator.evaluate(requests)
    right = per_token = 0
    for request, sample, item in zip(requests.items, result.samples, ITEMS, strict=True):
        scores, by_token = [], []
        for option in request.options:
            score = logprob(params, option.context, option.completion)
            by_token.append(score / len(option.completion.encode()))
            if normalisation == "token":
                score /= len(option.completion.encode())
            elif normalisation == "unconditional":
                score -= logprob(params, "Answer:", option.completion)
            scores.append(score)
        assert sample.log_likelihoods == pytest.approx(scores, abs=1e-4)
        assert sample.answer == request.options[int(np.argmax(scores))].completion
        right += int(np.argmax(scores)) == int(item["answer"])
        per_token += int(np.argmax(by_token)) == int(item["answer"])
    assert result.scores["accuracy_per_token"][0] == pytest.approx(per_token / 3)
    mean = right / 3
    assert result.scores["accuracy"] == pytest.approx((mean, math.sqrt(mean * (1 - mean) / 2)))
    assert result.chance == pytest.approx((1 / 3 + 1 / 2 + 1 / 4) / 3)
    assert (result.shots, result.count) == (shots, 3)
    assert (result.shots_used, result.left_out, result.sampled, result.measures) == (shots, 0, False, "ability")


def test_a_completion_is_right_if_greedy_decoding_gives_it(params, evaluator, tmp_path):
    text = CHOICES.replace('"accuracy", "macro_f1"', '"accuracy", "perplexity"')
    text = text[: text.index("[scoring]")] + '[scoring]\nkind = "completion"\ntarget = "{answer}"\n'
    prompt = [WORDS.eot, *WORDS.encode("Who?")]
    ((greedy,),) = Generator(NETWORK, params, None).generate([prompt], Sampling(tokens=3, temperature=0.0))
    wanted = WORDS.decode(greedy.ids)
    if not wanted.startswith(" "):  # completions begin with a space: take the likeliest after it
        ids = [*prompt, ord(" ")]
        ((rest,),) = Generator(NETWORK, params, None).generate([ids], Sampling(tokens=2, temperature=0.0))
        wanted = f" {WORDS.decode(rest.ids)}"
    items = [{"question": "Who?", "options": [], "answer": wanted[1:]}, {"question": "Who?", "answer": "zq"}]
    items[1]["options"] = []
    requests = build_requests(task(tmp_path, text, items), 0, data=tmp_path)
    result = evaluator.evaluate(requests)
    expected = [logprob(params, "Who?", request.options[0].completion) for request in requests.items]
    assert result.scores["perplexity"][0] == pytest.approx(math.exp(-sum(expected) / 2), rel=1e-4)  # per item
    assert result.samples[1].scores["accuracy"] == 0
    assert result.samples[0].scores["accuracy"] == float(greedy.ids == tuple(WORDS.encode(wanted)))


def test_the_likelihood_of_answers_is_measured_per_byte_and_token(params, evaluator, tmp_path):
    text = CHOICES.replace('"accuracy", "macro_f1"', '"bits_per_byte", "perplexity"')
    text = text[: text.index("[scoring]")] + '[scoring]\nkind = "likelihood"\ntarget = "{answer}"\n'
    items = [{"question": "Who?", "options": [], "answer": answer} for answer in ("you", "caf\u00e9s")]
    result = evaluator.evaluate(build_requests(task(tmp_path, text, items), 0, data=tmp_path))
    nats = [-logprob(params, "Who?", f" {item['answer']}") for item in items]
    assert result.scores["bits_per_byte"][0] == pytest.approx(sum(nats) / (4 + 7) / math.log(2), rel=1e-4)
    assert result.scores["perplexity"][0] == pytest.approx(math.exp(sum(nats) / 11), rel=1e-4)  # a token is a byte
    assert result.chance is None and result.samples[1].expected == " caf\u00e9s"


def test_an_ending_that_the_tokenizer_joins_with_its_candidate_is_scored(tmp_path):
    class Joining:
        eot = WORDS.eot

        def encode(self, text):
            return np.asarray([min(ord(c), 200) for c in text.replace(").", "\u00c8")])

    text = CHOICES[: CHOICES.index("[scoring]")].replace(', "macro_f1"', "").replace("{question}", "")
    text += '[scoring]\nkind = "partial"\ncontexts = "options"\ncompletion = "{question}"\ngold = "{answer}"\n'
    items = [{"question": end, "options": ["(the tall one)", "(the short one)"], "answer": "1"} for end in (".", "is")]
    joining = counting()
    joining._answers.words = Joining()
    result = joining.evaluate(build_requests(task(tmp_path, text, items), 0, data=tmp_path))
    assert result.count == 2 and len(result.notes) == 1 and "1 of 2 items" in result.notes[0]


@pytest.mark.slow
def test_free_answers_are_those_of_the_beam_search(params, evaluator, tmp_path):
    text = CHOICES.replace('"accuracy", "macro_f1"', '"exact_match", "f1"')
    text = text[: text.index("[scoring]")] + (
        '[scoring]\nkind = "free_form"\ntarget = "{answer}"\nmax_tokens = 5\nbeams = 3\nlength_penalty = 0.6\n'
    )
    requests = build_requests(task(tmp_path, text, ITEMS), 0, data=tmp_path)
    prompts = [[WORDS.eot, *WORDS.encode(request.context)] for request in requests.items]
    sampling = Sampling(tokens=5, beams=3, length_penalty=0.6, stop=("\n",))
    found = Generator(NETWORK, params, WORDS).generate(prompts, sampling)
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
            logits = compute(NETWORK, params, padded[None])[0, : len(whole) - 1].astype(np.float64)
            each = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            total += each[np.arange(len(whole) - 1), whole[1:]][-(end - start) :].sum()
        assert result.samples[0].scores["log_likelihood"] == pytest.approx(total, rel=1e-5)
        assert result.scores["bits_per_byte"][0] == pytest.approx(-total / math.log(2) / len(ids), rel=1e-5)


def test_a_text_file_is_read_across_its_lines(evaluator, params, tmp_path):
    words = "One line\nand\n\nanother, of the same text.\n" * 5
    (tmp_path / "a.txt").write_text(words)
    (tmp_path / "b.txt").write_text("Short.")
    requests = build_requests(find_tasks("text")[0], data=tmp_path, room=evaluator.room)
    seen: list[int] = []
    result = evaluator.evaluate(requests, seen.append)
    assert result.notes == () and result.count == 2 and result.left_out == 0 and seen[-1] == 2
    long, short = result.samples
    assert long.scores["bytes"] == len(words.encode()) - 1  # newlines inside count; the one at the end is stripped
    assert short.scores["log_likelihood"] == pytest.approx(logprob(params, "", "Short."), abs=1e-4)
    total = sum(sample.scores["log_likelihood"] for sample in result.samples)
    size = sum(sample.scores["bytes"] for sample in result.samples)
    assert result.scores["bits_per_byte"][0] == pytest.approx(-total / size / math.log(2))
    assert result.scores["perplexity"][0] == pytest.approx(math.exp(-total / size))  # a token is a byte here
    lines = sum(
        evaluator.evaluate(dataclasses.replace(requests, items=(dataclasses.replace(requests.items[0], context=line),)))
        .samples[0]
        .scores["log_likelihood"]
        for line in words.split("\n")
        if line
    )
    assert long.scores["log_likelihood"] != pytest.approx(lines, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("median", "spread", "answer", "options", "normalisation"),
    [  # in tokens: like PIQA, like ARC, and mixed lengths
        (12, 0.4, 40, 2, "token"),
        (24, 0.5, 6, 4, "token"),
        (24, 0.5, 6, 4, "unconditional"),
        (90, 0.8, 30, 4, "token"),
    ],
)
def test_ten_thousand_items_pad_less_than_a_third(tmp_path, median, spread, answer, options, normalisation):
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(math.log(median), spread, 10_000).clip(8, 700).astype(int)
    ends = rng.integers(1, answer, (10_000, options)).tolist()
    items = [
        {"question": "q" * n, "options": ["a" * k for k in ks], "answer": "0"}
        for n, ks in zip(lengths, ends, strict=True)
    ]
    text = CHOICES.replace(', "macro_f1"', "") + f'normalisation = "{normalisation}"\n'
    if normalisation == "unconditional":
        text += 'answer_context = "Answer:"\n'
    evaluator = counting(1024)
    seen: list[int] = []
    result = evaluator.evaluate(build_requests(task(tmp_path, text, items), 0, data=tmp_path), seen.append)
    assert result.count == 10_000 and seen == sorted(seen) and seen[-1] == 10_000 and len(set(seen)) > 50
    # The end-of-text token, the question, and behind it a space and each answer, whose last byte is only a target.
    real = sum(1 + n + sum(ks) for n, ks in zip(lengths.tolist(), ends, strict=True))
    if normalisation == "unconditional":
        real += sum(1 + len("Answer:") + sum(ks) for ks in ends)
    assert evaluator.work.real == real
    assert evaluator.work.ratio < 1.3


def test_table_and_lines_of_results(tmp_path):
    requests = build_requests(task(tmp_path, CHOICES, ITEMS), 0, data=tmp_path)
    result = counting().evaluate(requests)
    two = [dataclasses.replace(result, task="a"), dataclasses.replace(result, task="b")]
    shown = records.table(two)
    assert "task, mean of 2" in shown and "6 items" in shown and "(chance 0.361)" in shown
    record = json.loads(json.dumps(records.record(result)))
    assert record["shots"] == 0 and record["count"] == 3 and set(record["scores"]) == {"accuracy", "macro_f1"}
    assert record["shots_used"] == 0.0 and record["left_out"] == 0 and not {"sampled", "measures"} & record.keys()


def test_what_was_used_and_left_out_is_told(tmp_path):
    items = [*ITEMS, {"question": "w" * 200, "options": ["yes", "no"], "answer": "0"}]
    requests = build_requests(task(tmp_path, CHOICES, items), 3, data=tmp_path, room=counting().room)
    used = [request.shots for request in requests.items if request.fits]
    assert len(used) == 3 and 0 < sum(used) < 9
    result = counting().evaluate(requests)
    assert (result.count, result.left_out) == (3, 1) and result.shots_used == pytest.approx(sum(used) / 3)
    record = records.record(result)
    assert (record["shots"], record["left_out"]) == (3, 1) and record["shots_used"] == result.shots_used
    shown = records.table([result])
    assert f"  3 shots ({result.shots_used:.1f} used)  " in shown and "     3 items, 1 left out  " in shown
    assert "used" not in records.table([dataclasses.replace(result, shots_used=2.96)])


def test_records_say_what_a_task_is(tmp_path):
    (tmp_path / "crows_pairs_anonymized.csv").write_text(
        "sent_more,sent_less,stereo_antistereo,bias_type\nI am,you are,stereo,age\nHe is,she was,stereo,gender\n"
    )
    (crows,) = find_tasks("crows_pairs")
    assert find_tasks("winogender")[0].measures == "bias"
    record = records.record(counting().evaluate(build_requests(crows, data=tmp_path)))
    assert record["measures"] == "bias" and "sampled" not in record
    sampled = dataclasses.replace(task(tmp_path, CHOICES, ITEMS), sampled=True)
    record = records.record(counting().evaluate(build_requests(sampled, data=tmp_path)))
    assert record["sampled"] is True and "measures" not in record


def test_the_mean_of_a_sample_of_tasks_has_the_error_of_the_sample(tmp_path):
    result = counting().evaluate(build_requests(task(tmp_path, CHOICES, ITEMS), data=tmp_path))
    pairs = [(0.2, 0.01), (0.5, 0.02), (0.8, 0.01)]

    def mean(pairs, sampled):
        return records._mean([dataclasses.replace(result, scores={"accuracy": p}, sampled=sampled) for p in pairs])

    independent = math.sqrt(0.01**2 + 0.02**2 + 0.01**2) / 3
    assert mean(pairs, False)["accuracy"] == pytest.approx((0.5, independent))
    assert mean(pairs, True)["accuracy"] == pytest.approx((0.5, 0.3 / math.sqrt(3)))
    alike = [(0.5, 0.01), (0.5, 0.02), (0.5, 0.01)]
    assert mean(alike, True)["accuracy"] == pytest.approx((0.5, independent))  # at least that of the items
    assert mean([(1e300, 1e299), (3e300, 1e299)], False)["accuracy"] == pytest.approx((2e300, 1e299 / math.sqrt(2)))
    single = [(value, math.nan) for value, _ in pairs]
    assert math.isnan(mean(single, False)["accuracy"][1])
    assert mean(single, True)["accuracy"] == pytest.approx((0.5, 0.3 / math.sqrt(3)))


def test_one_item_has_no_error_and_its_record_is_json(tmp_path):
    requests = build_requests(task(tmp_path, CHOICES, ITEMS[:1]), data=tmp_path)
    result = counting().evaluate(requests)
    assert "accuracy 0 ± -" in records.table([result]) or "accuracy 1 ± -" in records.table([result])

    def refuse(constant):
        raise AssertionError(constant)

    path = tmp_path / "evals.jsonl"
    records.append(path, 1, 2, [result])
    record = json.loads(path.read_text(), parse_constant=refuse)
    assert record["scores"]["accuracy"][1] is None and record["scores"]["accuracy"][0] in (0, 1)
    assert record["scores"]["macro_f1"][1] is None


@pytest.mark.parametrize(
    ("torn", "kept"),
    [
        (b'{"step": 1, "ta', ""),
        (b'{"step": 1, "loss": 2.5}', '{"step": 1, "loss": 2.5}\n'),
        ('{"task": "\u00e9'.encode()[:-1], ""),
        (b"", ""),
    ],
)
@pytest.mark.parametrize("before", ["", '{"step": 0}\n'])
def test_a_torn_last_line_is_not_glued_to_the_next(tmp_path, torn, kept, before):
    result = counting().evaluate(build_requests(task(tmp_path, CHOICES, ITEMS), data=tmp_path))
    path = tmp_path / "evals.jsonl"
    path.write_bytes(before.encode() + torn)
    records.append(path, 3, 4, [result, result])
    line = json.dumps({"step": 3, "tokens": 4} | records.record(result)) + "\n"
    assert path.read_text() == before + kept + 2 * line
