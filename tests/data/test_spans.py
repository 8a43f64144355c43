"""Span corruption against T5's released code and definitions: lengths exactly, draws within three standard errors."""

import math

import numpy as np
import pytest

from scaling.config import schema as cfg
from scaling.data import tokenizer
from scaling.data.noise.by_name import noise_of
from scaling.data.noise.spans import corrupted, hidden_spans, lengths, random_segmentation

WORDS = tokenizer.load("bytes+sentinels")
SENTINELS = WORDS.sentinels


def config(source=512, target=114, seed=0, **knobs):
    return cfg.Config(
        seed=seed, data=cfg.Data(objective="span_corruption", source_length=source), noise=cfg.Noise(**knobs),
        train=cfg.Train(sequence_length=target), model=cfg.Model(encoder_layers=1),
    )  # fmt: skip


def texts(count, length=569, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, length)).astype(np.int32))


def with_ends(count, every, length=569):
    return [np.where(np.arange(length) % every == every // 2, WORDS.eot, ids).astype(np.int32) for ids in texts(count)]


def restored(row):
    """The text of a row: the spans of the target in the place of the sentinels of the source."""
    source = row.source[row.source_segments == 0]
    target = row.targets[row.weights == 1]
    assert source[-1] == target[-1] == WORDS.eot
    starts = np.flatnonzero(np.isin(target, SENTINELS))
    spans = {int(target[a]): target[a + 1 : b] for a, b in zip(starts, [*starts[1:], len(target) - 1], strict=True)}
    return np.concatenate([spans.get(i, [i]) for i in source[:-1].tolist()]), spans


def helper(inputs_length, noise_density, mean_noise_span_length):
    """``random_spans_helper`` with one extra token a span, as T5 has it."""

    def of(tokens_length):
        noise = round(tokens_length * noise_density)
        spans = round(noise / mean_noise_span_length)
        return tokens_length - noise + spans + 1, noise + spans + 1

    tokens_length = inputs_length
    while of(tokens_length + 1)[0] <= inputs_length:
        tokens_length += 1
    inputs_length, targets_length = of(tokens_length)
    if noise_density == 0.5 and targets_length > inputs_length:
        tokens_length -= 1
        targets_length -= 1
    return tokens_length, targets_length


@pytest.mark.parametrize("source", [64, 100, 512, 513, 1024])
@pytest.mark.parametrize(
    ("rate", "span"), [(0.15, 3.0), (0.15, 2.0), (0.15, 10.0), (0.1, 3.0), (0.25, 3.0), (0.5, 3.0)]
)
def test_lengths_are_t5_s(source, rate, span):
    found = lengths(source, cfg.Noise(rate=rate, span=span))
    assert (found.tokens, found.target) == helper(source, rate, span)


def test_the_paper_s_lengths():
    found = lengths(512, cfg.Noise())
    assert found == (568, 85, 28)
    assert (found.source, found.target) == (512, 114)


def test_rows_are_full_and_reversible():
    noise = noise_of(config(), WORDS)
    assert (noise.taken, noise.room) == (568, 114)
    given = texts(50)
    for i in range(50):
        row = noise(given, i)
        assert row.source.shape == row.source_segments.shape == (512,) and row.tokens.shape == (114,)
        assert not row.source_segments.any() and row.weights.all()
        assert row.tokens[0] == WORDS.eot == WORDS.decoder_start
        np.testing.assert_array_equal(row.tokens[1:], row.targets[:-1])
        text, spans = restored(row)
        np.testing.assert_array_equal(text, given[i][:568])
        assert list(spans) == SENTINELS[:28].tolist() and min(map(len, spans.values())) >= 1
        np.testing.assert_array_equal(row.source[np.isin(row.source, SENTINELS)], SENTINELS[:28])


def test_segmentations_are_all_alike():
    """Each segment of a cut into 28 has length l with probability C(items - l - 1, 26) / C(items - 1, 27)."""
    rng = np.random.default_rng(0)
    drawn = np.stack([random_segmentation(85, 28, rng) for _ in range(2000)])
    assert (drawn.sum(1) == 85).all() and drawn.min() == 1
    for place in (0, 13, 27):
        for length in (1, 2, 3, 6):
            share = math.comb(85 - length - 1, 26) / math.comb(84, 27)
            found = (drawn[:, place] == length).mean()
            assert abs(found - share) < 3 * np.sqrt(share * (1 - share) / len(drawn)), (place, length)
        error = drawn[:, place].std() / np.sqrt(len(drawn))
        assert abs(drawn[:, place].mean() - 85 / 28) < 3 * error  # 3.04, since both numbers are rounded


@pytest.mark.parametrize("span", [2.0, 3.0, 5.0])
def test_spans_have_the_mean_and_the_rate(span):
    found = lengths(512, cfg.Noise(span=span))
    mean, rate = found.hidden / found.spans, found.hidden / found.tokens
    assert abs(mean - span) < span / (2 * found.spans - 1)  # the number of spans is rounded
    assert abs(rate - 0.15) < 0.5 / found.tokens
    rng, special = np.random.default_rng(1), np.zeros(found.tokens, bool)
    hidden = np.zeros(found.tokens)
    for _ in range(2000):
        for start, end in zip(*hidden_spans(special, found, rng), strict=True):
            hidden[start:end] += 1
    assert hidden.sum() == 2000 * found.hidden
    inner = hidden[40:-40] / 2000  # ends differ, as in T5's code: the first token is never hidden, the last always
    assert abs(inner.mean() - rate) < 3 * np.sqrt(rate * (1 - rate) / 2000)
    assert hidden[0] == 0 and hidden[-1] == 2000


@pytest.mark.parametrize("every", [200, 60, 25])
def test_ends_of_documents_are_never_hidden(every):
    noise, given = noise_of(config(), WORDS), with_ends(40, every)
    for i in range(40):
        row = noise(given, i)
        text, spans = restored(row)
        np.testing.assert_array_equal(text, given[i][:568])
        assert WORDS.eot not in np.concatenate(list(spans.values()))
        assert not row.source_segments.any() and row.weights.all()


@pytest.mark.parametrize("every", [2, 4, 8])
def test_very_short_documents_hide_less_and_lose_their_end(every):
    noise, given = noise_of(config(), WORDS), with_ends(20, every)
    for i in range(20):
        text, spans = restored(noise(given, i))
        np.testing.assert_array_equal(text, given[i][: len(text)])
        assert len(text) > 500
        assert not spans or WORDS.eot not in np.concatenate(list(spans.values()))
    nothing = noise([np.full(569, WORDS.eot, np.int32)], 0)
    assert nothing.weights.sum() == 1 and (nothing.source == WORDS.eot).all()


def test_rows_are_functions_of_index_and_seed():
    given = texts(1) * 20
    one = noise_of(config(), WORDS)
    rows = [one(given, i).source.tobytes() for i in range(20)]
    assert len(set(rows)) == 20  # the same text in another epoch has other spans
    assert [noise_of(config(), WORDS)(given, i).source.tobytes() for i in reversed(range(20))] == rows[::-1]
    assert noise_of(config(seed=1), WORDS)(given, 0).source.tobytes() != rows[0]
    assert one.name != noise_of(config(span=2.0, target=lengths(512, cfg.Noise(span=2.0)).target), WORDS).name


def test_corrupted_is_figure_2_of_the_paper():
    ids = np.arange(9, dtype=np.int32)
    source, target = corrupted(ids, np.array([2, 6]), np.array([4, 7]), np.array([90, 91, 92], np.int32))
    np.testing.assert_array_equal(source, [0, 1, 90, 4, 5, 91, 7, 8])
    np.testing.assert_array_equal(target, [90, 2, 3, 91, 6])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(target=128), r"config\.train\.sequence_length=128 must be 114, the target of a source of 512 tokens"),
        (dict(source=0, target=512), r"config\.train\.sequence_length=512 must be 114.*source_length is not set"),
        (dict(source=2048, target=456), r"source_length=2048 makes rows of 114 spans, and .* has 100 sentinels"),
        (dict(rate=1.0), r"config\.noise\.rate=1\.0 hides 2 of 2 tokens in 1 spans, for a source of 512"),
        (dict(rate=0.9), r"config\.noise\.rate=0\.9 hides .* and text before it"),
        (dict(source=4), r"config\.noise\.rate=0\.15 hides . of . tokens in 0 spans"),
    ],
)
def test_lengths_that_do_not_go_together_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        noise_of(config(**wrong), WORDS)


def test_a_tokenizer_without_sentinels_is_refused():
    with pytest.raises(ValueError, match=r"'bytes' has no sentinels; a name that ends in \+sentinels gives it some"):
        noise_of(config(), tokenizer.load("bytes"))


def test_sentinels_of_t5_are_found_by_their_spelling():
    class T5(tokenizer.ByteTokenizer):
        @property
        def controls(self):
            return {"<pad>": 0, "</s>": 1} | {f"<extra_id_{i}>": 399 - i for i in range(100)}

    words = T5()
    np.testing.assert_array_equal(words.sentinels, 399 - np.arange(100))
    assert words.decoder_start == 0
    assert WORDS.sentinels.tolist() == list(range(257, 357)) and WORDS.decode([257]) == "<|sentinel_0|>"
