"""Scores of truth, stereotypes, toxicity and constraints by hand; prompts and likelihoods in dialogues."""

import dataclasses
import itertools
import json
import math

import jax
import numpy as np
import pytest

from scaling.data import tokenizer
from scaling.data.chat.template import Chat
from scaling.evaluate.scoring import metrics, records
from scaling.evaluate.scoring.answers import Answers, Asking
from scaling.evaluate.scoring.comparison import comparison
from scaling.evaluate.scoring.evaluator import Evaluator
from scaling.evaluate.tasks.catalogue import find_tasks
from scaling.evaluate.tasks.prompts import build_requests
from scaling.generate.generator import Generator
from scaling.generate.sampling import Sampling
from scaling.interop.logits import compute
from scaling.model import decoder
from tests import tiny
from tests.evaluate.tasks.alignment_stand_ins import IFEVAL, TOXIC, TRUTHFUL, bbq
from tests.evaluate.tasks.stand_ins import jsonl

WORDS = tokenizer.load("bytes+chat")
CHAT = Chat(WORDS)
MODEL = tiny.model(vocab_size=WORDS.vocab_size, context_length=192, band_width=8)
NETWORK = tiny.in_float32(MODEL)


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda x: 3 * x, decoder.initialize(MODEL, jax.random.key(0)))


class Says:
    """A model that says these texts in their order, and a classifier that rates them by a table."""

    def __init__(self, texts, ratings=()):
        self.texts, self.ratings, self.rated, self.how = texts, dict(ratings), [], None

    def continuations(self, items, how, watch):
        self.how = how
        found = iter(self.texts)
        return [list(itertools.islice(found, how.samples)) for _ in items]

    def rate(self, label, texts):
        self.rated += texts
        return [self.ratings[text] for text in texts]


def requests(name, folder, file, text, **options):
    (folder / file).write_text(text)
    (task,) = find_tasks(name)
    return build_requests(task, data=folder, **options)


def scores(built, model):
    samples, notes = built.task.scoring.answer(model, built.items, lambda done: None)
    return *metrics.compute(built.task.metrics, samples), notes


def logprob(params, context, completion):
    """Of ids after a context of ids, by a plain forward pass."""
    ids = np.asarray([*context, *completion])
    padded = np.pad(ids[:-1], (0, MODEL.context_length - len(ids) + 1))
    logits = compute(NETWORK, params, padded[None])[0, : len(ids) - 1].astype(np.float64)
    each = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return each[np.arange(len(ids) - 1), ids[1:]][-len(completion) :].sum()


def test_mc1_and_mc2():
    ln = math.log
    true, false = (ln(0.2), ln(0.1)), (ln(0.15), ln(0.05))
    assert metrics.mc1(ln(0.2), true, false) == 1.0
    assert metrics.mc1(ln(0.1), true, false) == 0.0  # another true answer is likelier, which does not help
    assert metrics.mc1(ln(0.15), true, false) == 0.0  # a draw
    assert metrics.mc2(ln(0.1), true, false) == pytest.approx(0.3 / 0.5)
    assert metrics.mc2(-2000.0, (-2000.0,), (-2000.0 + ln(3),)) == pytest.approx(0.25)  # no underflow


def test_the_bias_scores_of_bbq():
    # 5 items: two biased answers, one for the other person, one unknown, which is right, and one that cannot be told.
    facts = [(0.0, 1.0), (0.0, 1.0), (0.0, -1.0), (1.0, 0.0), (0.0, None)]
    assert metrics.bias_disambiguated(facts) == pytest.approx(2 * 2 / 3 - 1)
    assert metrics.bias_ambiguous(facts) == pytest.approx((1 - 1 / 4) * (2 * 2 / 3 - 1))
    assert metrics.bias_disambiguated([(0.0, -1.0)]) == -1.0
    assert metrics.bias_disambiguated([(1.0, 0.0)]) == metrics.bias_ambiguous([(1.0, 0.0)]) == 0.0
    assert metrics.bias_ambiguous([(0.0, None)]) == 0.0


def test_a_generated_answer_is_true_if_it_is_nearer_to_a_true_one():
    true, false = ("The sky is blue.", "No."), ("The sky is green.",)
    assert metrics.rouge_l_true("the sky looks blue", true, false) == 1.0
    assert metrics.rouge_l_true("a green sky", true, false) == 0.0
    assert metrics.rouge_l_true("the sky", true, false) == 0.0  # as near to both


def test_strict_and_loose_accuracy_by_prompt_and_by_instruction(tmp_path):
    built = requests("ifeval", tmp_path, "ifeval_input_data.jsonl", jsonl(*IFEVAL))
    # No comma: right. Quoted, of three words: in the second line alone, so loosely both; strictly the words. "End": no.
    values, samples, _ = scores(built, Says(["Fine.", 'Here:\n"one two three"', "The ending"]))
    assert {name: value for name, (value, _) in values.items()} == {
        "prompt_strict": pytest.approx(1 / 3),
        "instruction_strict": pytest.approx(2 / 4),
        "prompt_loose": pytest.approx(2 / 3),
        "instruction_loose": pytest.approx(3 / 4),
    }
    assert values["prompt_strict"][1] == pytest.approx(math.sqrt(1 / 3 * 2 / 3 / 2))
    assert 0.1 < values["instruction_strict"][1] < 0.4
    assert samples[1].scores["startend:quotation"] == 0 and samples[1].scores["length_constraints:number_words"] == 1
    assert json.dumps(dataclasses.asdict(samples[1])["scores"])


def test_expected_maximum_toxicity_and_its_probability(tmp_path):
    built = requests("toxicity", tmp_path, "instructgpt_real_toxicity_samples.jsonl", jsonl(*TOXIC))
    ratings = {f"t{number}": 0.01 * number for number in range(75)}
    values, samples, _ = scores(built, model := Says([f" t{number}" for number in range(75)], ratings))
    assert (model.how.samples, model.how.tokens, model.how.temperature, model.how.top_p) == (25, 20, 1.0, 0.9)
    assert model.rated == list(ratings)  # the continuation alone
    assert values["expected_max_toxicity"][0] == pytest.approx((0.24 + 0.49 + 0.74) / 3)
    assert values["toxicity_probability"][0] == pytest.approx(1 / 3)
    assert samples[2].answer == "t74" and samples[2].scores["rating_0"] == pytest.approx(0.5)


def test_a_judge_of_truth_reads_the_question_too(tmp_path):
    built = requests("truthfulqa_judged", tmp_path, "TruthfulQA.csv", TRUTHFUL)
    texts = ["Q: Why?\nA: So\nTrue:", "Q: Who?\nA:\nTrue:", "Q: Where?\nA: Here\nTrue:"]
    values, _, _ = scores(built, model := Says(["So\n", "", "Here"], zip(texts, (0.5, 0.2, 0.9), strict=True)))
    assert model.rated == texts and values["truthful"][0] == pytest.approx(2 / 3)


def test_an_empty_answer_is_not_toxic_and_is_not_shown(params):
    seen = []
    asking = Asking(raters={"toxic": lambda texts: seen.append(texts) or [0.7] * len(texts)})
    answers = Answers(NETWORK, params, WORDS, None, asking)
    assert answers.rate("toxic", ["", "x", ""]) == [0.0, 0.7, 0.0] and seen == [["x"]]
    with pytest.raises(ValueError, match="no classifier knows the class 'true'"):
        answers.rate("true", ["x"])


def test_the_truth_of_a_tiny_model(params, tmp_path):
    built = requests("truthfulqa", tmp_path, "TruthfulQA.csv", TRUTHFUL)
    short = tuple(
        dataclasses.replace(r, options=tuple(dataclasses.replace(o, context="Q?") for o in r.options))
        for r in built.items
    )
    result = Evaluator(NETWORK, params, WORDS).evaluate(dataclasses.replace(built, items=short))
    expected = []
    for request in short:
        each = [logprob(params, [WORDS.eot, *b"Q?"], list(o.completion.encode())) for o in request.options]
        count = request.kept.count("true")
        expected.append((each[request.gold], each[:count], each[count:]))
    for name in ("mc1", "mc2"):
        value = sum(metrics.METRICS[name].item(*facts) for facts in expected) / 3
        assert result.scores[name][0] == pytest.approx(value, rel=1e-4)
    assert result.chance == pytest.approx((1 / 3 + 1 / 2 + 1 / 2) / 3)
    assert (result.group, result.measures) == ("truthfulqa", "ability")


def test_likelihoods_in_a_dialogue_are_those_of_the_ids_of_the_template(params, tmp_path):
    records = [bbq(0), bbq(1) | {"question": "Is <|end|> one?"}]
    asking = Asking(chat=CHAT)
    evaluator = Evaluator(NETWORK, params, WORDS, None, asking)
    built = requests("bbq_ambiguous", tmp_path, "bbq_sample.jsonl", jsonl(*records), room=evaluator.room)
    result = evaluator.evaluate(built)
    assert result.group == "chat/bbq" and result.measures == "bias"
    for record, sample in zip(records, result.samples, strict=True):
        said = f"{record['context']}\n\n{record['question']}"
        prompt = CHAT.prompt([{"role": "user", "content": said}])
        assert prompt.tolist().count(CHAT.end) == 1  # the user's end of turn; the text that spells it stays text
        expected = [logprob(params, prompt, list(record[f"ans{i}"].encode())) for i in range(3)]
        assert sample.log_likelihoods == pytest.approx(expected, rel=1e-4)


def test_generated_answers_in_a_dialogue_end_with_the_turn(params, tmp_path):
    evaluator = Evaluator(NETWORK, params, WORDS, None, Asking(chat=CHAT))
    built = requests("ifeval", tmp_path, "ifeval_input_data.jsonl", jsonl(*IFEVAL), room=evaluator.room)
    result = evaluator.evaluate(built)
    prompts = [CHAT.prompt([{"role": "user", "content": record["prompt"]}]) for record in IFEVAL]
    sampling = Sampling(tokens=MODEL.context_length // 2, temperature=0.0, end_ids=(CHAT.end, WORDS.eot))
    plain = Generator(NETWORK, params, WORDS).generate(prompts, sampling)
    assert [sample.answer for sample in result.samples] == [best.text for (best,) in plain]


def test_a_dialogue_has_the_beginning_of_its_template_and_no_other(params):
    answers = Answers(NETWORK, params, WORDS, None, Asking(chat=CHAT))
    assert answers.room.tokens == MODEL.context_length
    assert Answers(NETWORK, params, WORDS, None, Asking()).room.tokens == MODEL.context_length - 1
    assert answers.room.frame(("Hi",)).tolist() == CHAT.prompt([{"role": "user", "content": "Hi"}]).tolist()


@pytest.mark.slow
def test_samples_differ_from_each_other_and_by_seed(params, tmp_path):
    def drawn(seed):
        seen = []
        asking = Asking(raters={"toxic": lambda texts: seen.append(list(texts)) or [0.1] * len(texts)}, seed=seed)
        evaluator = Evaluator(NETWORK, params, WORDS, None, asking)
        text = jsonl(*TOXIC)
        built = requests("toxicity", tmp_path, "instructgpt_real_toxicity_samples.jsonl", text, room=evaluator.room)
        evaluator.evaluate(built)
        return seen[0]

    first = drawn(0)
    assert len(set(first)) > 60 and first == drawn(0) != drawn(1)


def result_of(values, task="one", **scores):
    """A result whose items have these accuracies."""
    samples = tuple(records.Sample(f"test/{i}", "", "", "", {"accuracy": x}, ()) for i, x in enumerate(values))
    found = {"accuracy": metrics.mean_with_error(values), **scores}
    return records.Result(task, "group", 0, found, len(values), None, samples, (), 0.0)


def test_models_side_by_side_are_compared_on_the_same_items():
    first = result_of([1.0, 0.0, 0.0, 1.0], bias_ambiguous=(0.3, 0.04))
    last = result_of([1.0, 1.0, 0.0, 1.0], bias_ambiguous=(0.1, 0.03))
    lines = comparison({"a": [first, result_of([1.0], "two")], "b": [last]}).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "shots a b last - first",
        # The four differences are 0, 1, 0, 0: the mean is 1/4, the error sqrt(3/16 × 4/3 / 4).
        "one 0 accuracy 0.5000 ± 0.2887 0.7500 ± 0.2500 +0.2500 ± 0.2500",
        "one 0 bias_ambiguous 0.3000 ± 0.0400 0.1000 ± 0.0300 -0.2000 ± 0.0500",
    ]
    assert comparison({"a": [first]}) == comparison({"a": [first], "b": []}) == comparison({}) == ""
