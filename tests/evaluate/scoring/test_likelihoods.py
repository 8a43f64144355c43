"""Likelihoods against plain forward passes, one completion at a time."""

import jax
import numpy as np
import pytest

from scaling.config import schema as cfg
from scaling.evaluate.scoring.encoding import encode_group, encode_options
from scaling.evaluate.scoring.likelihoods import Group, Score, Scorer, bucket
from scaling.interop.logits import compute
from scaling.model import decoder
from scaling.parallel.mesh import make_mesh
from tests import tiny

MODEL = tiny.model(band_width=3)
NETWORK = tiny.in_float32(MODEL)


@pytest.fixture(scope="module")
def params():
    return decoder.initialize(MODEL, jax.random.key(3))


def plainly(params, group, network=NETWORK):
    """(sum of log-probabilities, greedy) of each completion, from whole logits of context and completion."""
    found = []
    for completion in group.completions:
        ids = np.asarray([*group.context, *completion])[-(network.model.context_length + 1) :]
        end = len(ids) - 1
        padded = np.pad(ids[:-1], (0, network.model.context_length - end))  # causal: what follows changes nothing
        logits = compute(network, params, padded[None])[0, end - len(completion) : end].astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        own = logprobs[np.arange(len(completion)), completion]
        found.append((own.sum(), bool((logits.argmax(-1) == completion).all())))
    return found


def random_groups(count, seed=0, longest=20, choices=4):
    rng = np.random.default_rng(seed)

    def ids(low, high):
        return tuple(rng.integers(1, tiny.VOCAB, rng.integers(low, high)).tolist())

    return [Group(ids(1, longest), tuple(ids(1, 7) for _ in range(rng.integers(1, choices + 1)))) for _ in range(count)]


def agree(scores, groups, params, network=NETWORK):
    for group, found in zip(groups, scores, strict=True):
        for score, (logprob, greedy), completion in zip(
            found, plainly(params, group, network), group.completions, strict=True
        ):
            assert score.logprob == pytest.approx(logprob, abs=2e-5)
            assert (score.greedy, score.tokens) == (greedy, len(completion))


def test_completions_side_by_side_score_as_they_do_alone(params):
    groups = random_groups(20)
    agree(Scorer(NETWORK, params, batch_tokens=256).score(groups), groups, params)


def test_greedy_is_the_argmax_of_every_token(params):
    context, chosen = (5, 6, 7), []
    for _ in range(3):
        chosen.append(int(compute(NETWORK, params, np.asarray([[*context, *chosen]]))[0, -1].argmax()))
    wrong = (*chosen[:2], (chosen[2] + 1) % tiny.VOCAB)
    ((right, other),) = Scorer(NETWORK, params).score([Group(context, (tuple(chosen), wrong))])
    assert right.greedy and not other.greedy


def test_long_contexts_lose_their_front_and_many_completions_take_several_rows(params):
    rng = np.random.default_rng(1)
    long = tuple(rng.integers(1, tiny.VOCAB, 100).tolist())
    groups = [
        Group(long, ((3, 4, 5),)),
        Group(long[:20], tuple(tuple(rng.integers(1, tiny.VOCAB, 9).tolist()) for _ in range(6))),
        Group((7,), (long[: MODEL.context_length],)),
        Group(long[:30], ((3, 4, 5), (3,), (8, 4, 5, 6, 7, 8, 9), (9, 8, 7))),  # each is cut as far as it must
    ]
    agree(Scorer(NETWORK, params).score(groups), groups, params)


@pytest.mark.slow
def test_the_same_on_meshes(params):
    groups = random_groups(7)
    expected = Scorer(NETWORK, params).score(groups)
    for sizes, count in (
        (cfg.Mesh(fsdp=4), 4),
        (cfg.Mesh(data=2, tensor=2), 4),
        (cfg.Mesh(fsdp=2, tensor=4), 8),
        (cfg.Mesh(fsdp=2, context=2, tensor=2), 8),
    ):
        mesh = make_mesh(sizes, jax.devices()[:count])
        placed = jax.device_put(params, decoder.shardings(MODEL, mesh))
        found = Scorer(NETWORK, placed, mesh).score(groups)
        for a, b in zip(expected, found, strict=True):
            assert [s.logprob for s in a] == pytest.approx([s.logprob for s in b], abs=1e-5)


def test_progress_counts_whole_groups(params, monkeypatch):
    groups = random_groups(30)
    groups[3] = Group((7,) * 20, ((5,) * 9,) * 6)  # takes several rows
    scorer, seen = Scorer(NETWORK, params, batch_tokens=64), []
    monkeypatch.setattr(scorer, "_run", lambda rows, _: [[Score(-1.0, 1, False)] * len(row.places) for row in rows])
    scores = scorer.score(iter(groups), seen.append)
    assert seen == sorted(seen) and len(set(seen)) > 5 and seen[-1] == 30
    assert [len(found) for found in scores] == [len(group.completions) for group in groups]


@pytest.mark.parametrize("group", [Group((), ((1,),)), Group((1,), ((),)), Group((1,), (tuple(range(1, 40)),))])
def test_what_cannot_be_scored_is_refused(params, group):
    with pytest.raises(ValueError, match=r"at least one token|does not fit"):
        Scorer(NETWORK, params).score([group])


def test_buckets():
    assert [bucket(n) for n in (1, 16, 17, 24, 25, 32, 33, 48, 49, 64, 65)] == [
        16,
        16,
        24,
        24,
        32,
        32,
        48,
        48,
        64,
        64,
        96,
    ]
    assert all(n <= bucket(n) <= max(16, 1.5 * n) for n in range(1, 5000))


def test_tokens_of_a_pair_are_those_of_both_together():
    class Words:
        bos = 0

        def encode(self, text):  # pairs of letters are one token
            return np.asarray([sum(map(ord, text[i : i + 2])) for i in range(0, len(text), 2)])

    words = Words()
    assert encode_group(words, "ab", ["cd"]) == Group((195,), ((199,),))
    # The last letter of the context and the first of the completion share a token of the whole text.
    assert encode_group(words, "abc", ["def"]) == Group((195, 99), ((203,),))
    assert encode_group(words, "", ["ab"]) == Group((0,), ((195,),))
    with pytest.raises(ValueError, match="adds no token"):
        encode_group(words, "abc", ["d"])


class Joining:
    """A token a letter, but ``).`` is one."""

    bos = 0

    def encode(self, text):
        return np.asarray([ord(c) for c in text.replace(").", "\u0100")])


def ids(text):
    return tuple(Joining().encode(text).tolist())


@pytest.mark.parametrize(
    ("options", "groups", "early"),
    [
        # Nothing is joined: contexts of their own, or one for all.
        ([("ab", "."), ("cd", ".")], [("ab", ["."]), ("cd", ["."])], False),
        ([("ab", " x"), ("ab", " yz")], [("ab", [" x", " yz"])], False),
        ([("", "a"), ("", "b")], [("", ["a", "b"])], False),
        # Joined in both in the same way: the same last token, after what is before it.
        ([("(a b)", "."), ("(c b)", ".")], [("(a b", [")."]), ("(c b", [")."])], True),
        # The ending goes on behind the joined token, which must not be lost.
        ([("(a)", ". No"), ("(b)", ". No")], [("(a", ["). No"]), ("(b", ["). No"])], True),
        # Joined in one only: all that follows what both share.
        ([("x (a)", "."), ("x it", ".")], [("x ", ["(a).", "it."])], True),
        ([("(a)", "."), ("it", ".")], [("", ["(a).", "it."])], True),
        # One context: what follows the part of it that all completions leave.
        ([("(a)", "."), ("(a)", "!")], [("(a", [").", ")!"])], True),
        ([("(a)", ".")], [("(a", [")."])], True),
    ],
)
def test_options_are_scored_over_the_same_text_where_tokens_join_context_and_completion(options, groups, early):
    found, found_early = encode_options(Joining(), options)
    assert [group for group, _ in found] == [
        Group(ids(context) or (0,), tuple(map(ids, completions))) for context, completions in groups
    ]
    assert sorted(place for _, places in found for place in places) == list(range(len(options)))
    assert found_early == early
    prefixed, _ = encode_options(Joining(), options, (7,))
    assert [group.context for group, _ in prefixed] == [(7, *ids(context)) for context, _ in groups]


def test_options_of_a_tokenizer_that_loses_text_are_refused():
    class Losing(Joining):
        def encode(self, text):
            return super().encode(text.rstrip("."))

    with pytest.raises(ValueError, match="adds no token"):
        encode_options(Losing(), [("ab", ".")])
