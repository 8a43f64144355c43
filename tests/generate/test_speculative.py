"""Speculative decoding has the distribution of plain decoding, and its tokens where it is greedy."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from scaling.config import schema as cfg
from scaling.data import tokenizer
from scaling.generate.draft import Draft
from scaling.generate.generator import Generator
from scaling.generate.sampling import Sampling, rules, weighed
from scaling.model import decoder
from scaling.parallel.mesh import make_mesh, one_device
from tests import tiny

PROMPTS = [[5, 17, 3, 40, 22], [8, 9], [1], [33, 2, 7, 11, 40, 6, 21]]
GREEDY = Sampling(tokens=14, temperature=0.0, end_ids=())
ONE_LAYER = dict(num_layers=1, attention_pattern=("banded",), vocab_size=257)
WORDS = tokenizer.load("bytes")


@functools.cache
def model(seed=0, **changes):
    network = tiny.network(**ONE_LAYER | changes)
    params = decoder.initialize(network.model, jax.random.key(seed))
    return network, jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, params)  # far from uniform


@functools.cache
def plain():
    return Generator(*model(), None)


def speculative(seed=0, words=None, mesh=None, tokens=4, **changes):
    return Generator(*model(**changes), words, mesh, Draft(*model(seed, **changes), tokens))


@functools.cache
def alike():
    """A draft that is near the model, whose proposals are accepted in part."""
    network, params = model()
    noise = decoder.initialize(network.model, jax.random.key(5))
    near = jax.tree.map(lambda x, other: x + 2.5 * other if x.ndim > 1 else x, params, noise)
    return Generator(network, params, None, draft=Draft(network, near))


def ids(found):
    return [[list(completion.ids) for completion in completions] for completions in found]


def passes(found):
    return [completion.passes for completions in found for completion in completions]


@pytest.mark.slow
def test_greedy_equals_plain_decoding():
    want = ids(plain().generate(PROMPTS, GREEDY))
    itself, near, random = (
        generator.generate(PROMPTS, GREEDY) for generator in (speculative(), alike(), speculative(seed=1))
    )
    assert ids(itself) == ids(near) == ids(random) == want
    assert passes(itself) == [4] * 4  # the prompt, then 5 + 5 + 3 tokens: all are accepted
    assert all(4 < count < 14 for count in passes(near))
    assert all(count > 10 for count in passes(random))
    # Rows in one batch, and each by itself; only these have one slot.
    assert ids(alike().generate(PROMPTS, GREEDY, batch_size=1)) == want


@pytest.mark.slow
def test_a_penalty_counts_the_proposals_before():
    sampling = dataclasses.replace(GREEDY, repetition_penalty=1.5)
    want = ids(plain().generate(PROMPTS, sampling))
    assert want != ids(plain().generate(PROMPTS, GREEDY))
    for generator in (speculative(), alike()):
        found = generator.generate(PROMPTS, sampling)
        assert ids(found) == want
    assert passes(speculative().generate(PROMPTS, sampling)) == [4] * 4


def test_a_text_ends_inside_of_accepted_tokens():
    (want,) = ids(plain().generate(PROMPTS[:1], GREEDY))
    for place in (1, 2, 7):
        sampling = dataclasses.replace(GREEDY, end_ids=(want[0][place],))
        (found,), (again,) = (generator.generate(PROMPTS[:1], sampling) for generator in (plain(), speculative()))
        assert (again[0].ids, again[0].finish) == (found[0].ids, "end")
        assert len(found[0].ids) <= place


def test_streams_grow_and_stops_cut():
    generator = speculative(words=WORDS)
    whole = Generator(*model(), WORDS).generate(PROMPTS, GREEDY)
    stop = whole[0][0].text[3:5]
    grown = list(generator.stream(PROMPTS[0], GREEDY, every=3))
    assert [len(each.ids) for each in grown] == [3, 6, 9, 12, 14]
    assert all(b.text.startswith(a.text) for a, b in itertools.pairwise(grown))
    assert grown[-1].ids == whole[0][0].ids
    sampling = dataclasses.replace(GREEDY, stop=(stop,))
    (found,), (cut,) = (each.generate(PROMPTS[:1], sampling) for each in (Generator(*model(), WORDS), generator))
    assert (cut[0].text, cut[0].finish, cut[0].ids) == (found[0].text, "stop", found[0].ids)


@pytest.mark.slow
def test_draws_depend_on_neither_batch_nor_pieces():
    sampling = dataclasses.replace(GREEDY, temperature=0.7, num_samples=2, seed=3)
    together = alike().generate(PROMPTS, sampling)
    alone = alike().generate(PROMPTS, sampling, batch_size=1)
    assert (ids(alone), passes(alone)) == (ids(together), passes(together))
    *_, last = alike().stream(PROMPTS[0], sampling, every=1)
    assert list(last.ids) == ids(together)[0][0]
    assert ids(together) != ids(alike().generate(PROMPTS, dataclasses.replace(sampling, seed=4)))
    assert passes(speculative().generate(PROMPTS, sampling)) == [4] * 8  # all of its own proposals


SMALL = dict(vocab_size=5, context_length=16)


@functools.cache
def exact(options):
    """The probability of each text of 3 tokens after [1, 2], all forward passes without a cache."""
    network, params = model(**SMALL)
    module, sampling = decoder.merge(network, params), Sampling(**dict(options))
    static, dials = rules(sampling, 5, None)
    texts = np.asarray(list(itertools.product(range(5), repeat=3)), np.int32)
    rows = np.concatenate([np.tile([1, 2], (len(texts), 1)), texts], axis=1).astype(np.int32)
    with jax.set_mesh(one_device()):
        logits = jax.jit(lambda rows: module.logits(module(rows)))(rows)[:, 1:4, :5]
        seen = np.stack([[np.isin(np.arange(5), row[: 2 + i]) for i in range(3)] for row in rows])
        weights = weighed(logits.reshape(-1, 5), static, dials, seen.reshape(-1, 5)).reshape(-1, 3, 5)
    p = np.asarray(jax.nn.softmax(weights, axis=-1), np.float64)
    return np.take_along_axis(p, texts[:, :, None], axis=2)[:, :, 0].prod(1)


def part(known, seed=1, tokens=2, **changes):
    """A draft that has so many of the model's tokens."""
    network, params = model(seed, **changes | dict(vocab_size=len(known) + 1))
    return Draft(network, params, tokens, np.asarray(known))


@pytest.mark.slow
@pytest.mark.parametrize("known", [None, [0, 2, 3]])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 4, "top_p": 0.9, "temperature": 1.5},
        {"top_p": 0.8},
        {"repetition_penalty": 1.8, "temperature": 2.0},
    ],
)
def test_texts_have_the_exact_distribution(options, known):
    count = 4096
    draft = Draft(*model(1, **SMALL), 2) if known is None else part(known, **SMALL)
    generator = Generator(*model(**SMALL), None, draft=draft)
    sampling = Sampling(tokens=3, end_ids=(), num_samples=count, **options)
    (found,) = generator.generate([[1, 2]], sampling, batch_size=count)
    numbers = [25 * a + 5 * b + c for a, b, c in (completion.ids for completion in found)]
    shares, want = np.bincount(numbers, minlength=125) / count, exact(tuple(options.items()))
    assert abs(want.sum() - 1) < 1e-5
    assert (np.abs(shares - want) <= 4 * np.sqrt(want * (1 - want) / count) + 1e-6).all()
    used = want * count >= 5
    statistic = ((shares - want)[used] ** 2 / want[used]).sum() * count
    assert statistic < used.sum() + 5 * np.sqrt(2 * used.sum())
    # Both ways to a token were taken.
    assert 2 < np.mean(passes([found])) < 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "bloom", "lamda", "strided", "mixtral", "transformer_xl"])
def test_rows_with_slots_of_their_own_in_other_families(name):
    switches = {"attention_pattern": ("dense",), **tiny.SWITCHES[name], "num_layers": 2}
    want = ids(Generator(*model(**switches), None).generate(PROMPTS, GREEDY))
    assert ids(speculative(seed=1, **switches).generate(PROMPTS, GREEDY)) == want
    found = speculative(**switches).generate(PROMPTS, GREEDY)
    assert ids(found) == want
    assert passes(found) == [4] * 4


@pytest.mark.slow
def test_eight_devices_choose_the_same_tokens():
    mesh = make_mesh(cfg.Mesh(fsdp=2, tensor=4), jax.devices()[:8])
    network, params = model()
    drafts = [model(seed) for seed in (0, 1)]
    for draft in drafts:
        found = Generator(network, params, None, mesh, Draft(*draft)).generate(PROMPTS, GREEDY)
        assert ids(found) == ids(plain().generate(PROMPTS, GREEDY))


@pytest.mark.slow
def test_a_part_of_the_vocabulary_proposes_what_it_has():
    network, params = model()
    want = ids(plain().generate(PROMPTS[:1], GREEDY))[0]

    def itself(known):
        """The model, with so many of its tokens."""
        small = tiny.network(**ONE_LAYER | dict(vocab_size=len(known) + 1))
        rows = np.zeros((small.model.padded_vocab, small.model.d_model), np.float32)
        rows[: len(known)] = np.asarray(params["tokens"])[known]
        draft = Draft(small, params | {"tokens": rows}, 4, np.asarray(known))
        return Generator(network, params, None, draft=draft).generate(PROMPTS[:1], GREEDY)

    texts = sorted({*PROMPTS[0], *want[0]})
    all_known = itself(texts)
    assert ids(all_known) == [want] and passes(all_known) == [4]  # as of the whole model: 1 + 5 + 5 + 3 tokens
    one_less = itself([token for token in texts if token != want[0][7]])
    assert ids(one_less) == [want] and 4 < passes(one_less)[0] < 14
    mesh = make_mesh(cfg.Mesh(fsdp=2, tensor=4), jax.devices()[:8])
    several = Generator(network, params, None, mesh, part(list(range(0, 257, 2)), tokens=4, **ONE_LAYER))
    assert ids(several.generate(PROMPTS, GREEDY)) == ids(plain().generate(PROMPTS, GREEDY))


def test_what_cannot_be_a_draft_is_refused():
    for changes, message in (
        (dict(vocab_size=40), "vocabulary of 40, and the model one of 257"),
        (dict(context_length=31), "context of 31, which must be at least the model's, 32"),
        (dict(causal=False), "is an encoder"),
    ):
        network = tiny.network(**ONE_LAYER | changes)
        with pytest.raises(ValueError, match=message):
            Generator(*model(), None, draft=Draft(network, None))
    with pytest.raises(ValueError, match="1 or more tokens in a round, not 0"):
        speculative(tokens=0)
    with pytest.raises(ValueError, match=r"a vocabulary of 3, which must have 3 of the model's 257 tokens"):
        Generator(*model(), None, draft=part([1, 2, 3])._replace(network=tiny.network(**ONE_LAYER | {"vocab_size": 3})))
    both = dataclasses.replace(model()[0].model, encoder_layers=1)
    with pytest.raises(ValueError, match="the draft has an encoder"):
        Generator(*model(), None, draft=Draft(dataclasses.replace(model()[0], model=both), None))
    with pytest.raises(ValueError, match=r"beam search \(beams=2\) and a draft exclude each other"):
        speculative().generate(PROMPTS, Sampling(beams=2))
