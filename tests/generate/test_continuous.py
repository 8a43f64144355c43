"""Continuous batching: a text is the same alone and in company, whoever comes, ends, fails or goes away meanwhile."""

import dataclasses

import jax
import numpy as np
import pytest

from scaling.generate.continuous import PIECE, Engine, Text
from scaling.generate.generator import Generator
from scaling.generate.sampling import Sampling
from scaling.model import decoder
from tests import tiny

CONTEXT = 96


def model(**switches):
    network = tiny.network(context_length=CONTEXT, **{"num_layers": 1, "attention_pattern": ("dense",)} | switches)
    params = decoder.initialize(network.model, jax.random.key(0))
    return Generator(network, jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, params), None)


@pytest.fixture(scope="module")
def generator():
    return model()


ENDS = (3, 11, 17)  # likely enough that texts end at different steps
CASES = [  # length of the prompt, sampling
    (5, Sampling(tokens=20, temperature=0.0, end_ids=())),
    (30, Sampling(tokens=7, seed=1, end_ids=())),
    (1, Sampling(tokens=40, seed=2, top_p=0.8, end_ids=ENDS)),
    (17, Sampling(tokens=1, seed=3, end_ids=())),
    (60, Sampling(tokens=36, temperature=0.7, seed=4, num_samples=3, end_ids=ENDS)),
    (9, Sampling(tokens=33, temperature=0.0, end_ids=ENDS)),
    (16, Sampling(tokens=12, seed=5, temperature=1.3, top_p=0.5, end_ids=())),
]


def texts(cases=CASES, deliver=None):
    """Texts of the cases, each with the list of what it was given."""
    rng, found = np.random.default_rng(0), []
    for length, sampling in cases:
        prompt = rng.integers(0, tiny.VOCAB, length)
        for sample in range(sampling.num_samples):
            given = []
            found.append((Text(prompt, sampling, sample, deliver or given.append), given))
    return found


def run(engine, most=200):
    for _ in range(most):
        if not engine.busy:
            return
        engine.step()
    raise AssertionError("it does not end")


def alone(generator):
    """What ``Generator.generate`` says to each, one prompt at a time."""
    said = []
    for text, _ in texts():
        if text.sample == 0:
            said += generator.generate([text.prompt], text.sampling, numbers=[0])[0]
    return said


@pytest.mark.slow
def test_a_text_in_company_is_the_text_alone(generator):
    """Nine texts in three rows, and then each by itself: greedy, drawn, with top-p, in all orders of coming."""
    expected = alone(generator)
    engine, all_of_them = Engine(generator, 3), texts()
    engine.submit([text for text, _ in all_of_them[:4]])
    engine.step()
    engine.submit([text for text, _ in reversed(all_of_them[4:])])
    run(engine)
    assert [given[-1] for _, given in all_of_them] == expected
    for (text, given), completion in zip(texts(), expected, strict=True):
        engine.submit([text])
        run(engine)
        assert given[-1] == completion
    assert {found.finish for found in expected} == {"end", "length"}
    assert engine._cache is None and not engine.waiting


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "llama",
        "banded",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("transformer_xl", "mixtral", "bloom")),
    ],
)
def test_with_other_switches(name):
    switches = tiny.SWITCHES.get(name, {"num_layers": 2, "attention_pattern": ("dense", "banded")})
    generator = model(**switches)
    engine, all_of_them = Engine(generator, 2), texts(CASES[:3])
    engine.submit([text for text, _ in all_of_them])
    run(engine)
    for text, given in all_of_them:
        assert given[-1] == generator.generate([text.prompt], text.sampling, numbers=[0])[0][0]


def test_text_arrives_in_pieces_and_a_free_row_is_taken_at_once(generator):
    engine, ((long, given), (short, _), (late, later)) = Engine(generator, 2), texts([CASES[0], CASES[1], CASES[5]])
    engine.submit([long, short, late])
    engine.step()
    assert [len(found.ids) for found in given] == [1, 1 + PIECE] and not later and engine.waiting == 1
    engine.step()  # the short one has its 7 tokens now
    engine.step()
    assert len(short.ids) >= 7 and later and engine.waiting == 0 and not given[-1].finish
    run(engine)
    assert [len(found.ids) for found in given] == [1, 5, 9, 13, 17, 20]


def test_a_client_that_goes_away_frees_its_row(generator):
    engine, ((gone, given), (waits, later), (stays, kept)) = (
        Engine(generator, 2),
        texts([CASES[0], CASES[5], CASES[4]])[:3],
    )
    engine.submit([gone, stays, waits])
    engine.step()
    gone.stopped.set()
    count = len(given)
    engine.step()
    assert len(given) == count and later
    run(engine)
    assert kept[-1].finish and later[-1].finish
    expected = generator.generate([stays.prompt], dataclasses.replace(stays.sampling, num_samples=1), numbers=[0])
    assert kept[-1] == expected[0][0]
    waits.stopped.set()  # before it has a row
    engine.submit([waits])
    count = len(later)
    run(engine)
    assert len(later) == count


def test_bad_input_harms_no_other(generator, monkeypatch):
    engine, ((good, given), (bad, told)) = Engine(generator), texts([CASES[0], CASES[1]])
    for prompt, sampling, sentence in (
        ([], Sampling(tokens=3), "empty"),
        ([tiny.VOCAB + 99], Sampling(tokens=3), "outside the vocabulary"),
        ([1], Sampling(tokens=CONTEXT), "more than the model's context"),
        ([1], Sampling(tokens=3, beams=2), "not served"),
        ([1], Sampling(tokens=3, top_k=2), "not served"),
    ):
        with pytest.raises(ValueError, match=sentence):
            engine.submit([Text(np.asarray(prompt, np.int32), sampling, 0, print)])
    assert not engine.busy
    real = generator.continued

    def continued(prompt, ids, sampling):
        if sampling is bad.sampling and len(ids) > 1:
            raise ZeroDivisionError("in its text")
        return real(prompt, ids, sampling)

    monkeypatch.setattr(generator, "continued", continued)
    engine.submit([good, bad])
    run(engine)
    assert isinstance(told[-1], ZeroDivisionError) and not any(isinstance(found, Exception) for found in given)
    assert given[-1] == generator.generate([good.prompt], good.sampling)[0][0]


def test_when_the_device_fails_all_are_told_and_the_next_is_served(generator, monkeypatch):
    engine, ((one, told), (two, also)) = Engine(generator), texts([CASES[0], CASES[5]])
    engine.submit([one, two])
    engine.step()
    with monkeypatch.context() as broken:
        broken.setattr("scaling.generate.continuous._advance", lambda *_: 1 / 0)
        engine.step()
    assert isinstance(told[-1], ZeroDivisionError) and isinstance(also[-1], ZeroDivisionError) and not engine.busy
    (again, given), *_ = texts([CASES[0]])
    engine.submit([again])
    run(engine)
    assert given[-1].finish == "length"


def test_what_is_not_served_so():
    network = tiny.network(context_length=32, num_layers=1, attention_pattern=("dense",), encoder_layers=1)
    params = decoder.initialize(network.model, jax.random.key(0))
    assert not Engine.can_serve(Generator(network, params, None))
    assert not Engine.takes(Sampling(repetition_penalty=2.0)) and Engine.takes(Sampling(top_p=0.5, stop=("a",)))
