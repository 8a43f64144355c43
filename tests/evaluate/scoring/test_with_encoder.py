"""Tasks on a decoder beside an encoder: contexts are sources, against plain forward passes."""

import types

import jax
import numpy as np
import pytest

from scaling.catalog import families
from scaling.data import tokenizer
from scaling.data.pairs import framed
from scaling.evaluate.harness import requests as harness
from scaling.evaluate.scoring.evaluator import Evaluator
from scaling.evaluate.scoring.likelihoods import Group, Scorer
from scaling.evaluate.tasks.prompts import build_requests
from scaling.interop.logits import compute
from scaling.model import decoder
from tests import tiny
from tests.evaluate.scoring.test_evaluator import CHOICES, ITEMS, task

WORDS = tokenizer.load("bytes")
MODEL = tiny.model(
    **families.T5, encoder_layers=2, attention_pattern=("dense",), vocab_size=WORDS.vocab_size, context_length=48
)
NETWORK = tiny.in_float32(MODEL)


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda x: 3 * x, decoder.initialize(MODEL, jax.random.key(0)))


def plainly(params, context, completion):
    """(log-probability, greedy) of a completion, from whole logits."""
    source = framed(np.asarray(context, np.int32)[-(MODEL.context_length - 1) :] if context else np.zeros(0), WORDS)
    ids, there = (np.zeros((1, MODEL.context_length), np.int32) for _ in range(2))
    ids[0, : len(source)], there[0, : len(source)] = source, 1
    read = np.zeros((1, MODEL.context_length), np.int32)
    read[0, : len(completion)] = [WORDS.decoder_start, *completion[:-1]]
    logits = compute(NETWORK, params, ids, there, None, read)[0, : len(completion)].astype(np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted = list(completion)
    return log_probs[np.arange(len(wanted)), wanted].sum(), bool((logits.argmax(-1) == wanted).all())


def of_texts(params, context, completion):
    return plainly(params, WORDS.encode(context).tolist(), WORDS.encode(completion).tolist())[0]


def test_scores_equal_those_of_whole_logits(params):
    rng = np.random.default_rng(0)

    def ids(low, high):
        return tuple(rng.integers(1, 250, rng.integers(low, high)).tolist())

    contexts = [(), ids(60, 70), *(ids(1, 40) for _ in range(6))]
    groups = [Group(context, tuple(ids(1, 20) for _ in range(4))) for context in contexts]
    for group, scores in zip(groups, Scorer(NETWORK, params, words=WORDS).score(groups), strict=True):
        for score, completion in zip(scores, group.completions, strict=True):
            log_prob, greedy = plainly(params, group.context, completion)
            assert score.logprob == pytest.approx(log_prob, abs=2e-5) and score.greedy == greedy


def test_a_task_asks_the_encoder(params, tmp_path):
    requests = build_requests(
        task(tmp_path, CHOICES.replace("macro_f1", "accuracy_per_token"), ITEMS), 0, data=tmp_path
    )
    result = Evaluator(NETWORK, params, WORDS).evaluate(requests)
    for request, sample in zip(requests.items, result.samples, strict=True):
        said = [of_texts(params, each.context, each.completion.lstrip(" ")) for each in request.options]
        assert (
            sample.answer
            == request.options[
                int(np.argmax(said / np.array([len(o.completion.strip()) for o in request.options])))
            ].completion
        )


def test_the_harness_asks_the_encoder(params):
    answers = harness.Answers(types.SimpleNamespace(network=NETWORK, params=params, mesh=None, words=WORDS))
    (found,) = answers.loglikelihoods([("Who is it?", " you")])
    assert found[0] == pytest.approx(of_texts(params, "Who is it?", "you"), abs=2e-5)
    assert len(answers.continuations([("Who?", {"max_gen_toks": 3})])) == 1
    with pytest.raises(ValueError, match="likelihoods of running text"):
        answers.rolling(["some text"])
