"""The five kinds of noise of BART against their definitions, within three standard errors."""

import math
import re

import numpy as np
import pytest

from scaling.config import schema as cfg
from scaling.data import tokenizer
from scaling.data.noise import denoising as kinds
from scaling.data.noise.by_name import noise_of
from scaling.data.tokenizer_base import MASK

WORDS = tokenizer.load("bytes+mask")
MASKED = WORDS.special(MASK)
NOTHING = dict(permuted=0.0, infilling=0.0)
STOP = ord(".")


def config(length=128, source=0, seed=0, **knobs):
    return cfg.Config(
        seed=seed, data=cfg.Data(objective="denoising", source_length=source), noise=cfg.Noise(**knobs),
        train=cfg.Train(sequence_length=length), model=cfg.Model(encoder_layers=1),
    )  # fmt: skip


def noise(length=128, **of):
    return noise_of(config(length, **of), WORDS)


def texts(count, length=128, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, length)).astype(np.int32))


def source_of(row):
    found = row.source[row.source_segments == 0]
    assert found[-1] == WORDS.eot
    return found[:-1]


def within(found, share, count):
    assert abs(found - share) < 3 * np.sqrt(share * (1 - share) / count), (found, share)


def test_the_target_is_the_text_with_its_end():
    for row, text in ((noise()(texts(9), i), texts(9)[i]) for i in range(9)):
        assert row.source.shape == row.tokens.shape == (128,) and row.weights.all()
        np.testing.assert_array_equal(row.targets, [*text[:127], WORDS.eot])
        np.testing.assert_array_equal(row.tokens, [WORDS.decoder_start, *text[:127]])


def test_without_noise_the_source_is_the_text():
    row = noise(**NOTHING)(texts(1), 0)
    np.testing.assert_array_equal(source_of(row), texts(1)[0][:127])
    longer = noise(**NOTHING, source=140)(texts(1), 0)
    np.testing.assert_array_equal(longer.source_segments, [0] * 128 + [1] * 12)


def test_infilling_has_poisson_lengths_and_its_share():
    rng, ids = np.random.default_rng(0), np.arange(500, dtype=np.int32)
    found = [kinds.infilled(ids, cfg.Noise(), MASKED + 500, rng) for _ in range(2000)]
    spans = np.concatenate([each.spans for each in found])
    for length in range(9):
        within((spans == length).mean(), math.exp(-3) * 3**length / math.factorial(length), len(spans))
    assert abs(spans.mean() - 3) < 3 * np.sqrt(3 / len(spans))
    hidden = np.array([each.spans.sum() for each in found])
    assert abs(hidden.mean() - 0.3 * 500) < 3 * hidden.std() / np.sqrt(len(hidden))
    where = np.zeros(500)
    for each in found:
        shown = each.ids[each.ids < 500]
        assert len(shown) + each.spans.sum() == 500 and (np.diff(shown) > 0).all()
        where[shown] += 1
    share = (1 - where / len(found))[20:-20]  # spans lie inside the text, so its ends are hidden less often
    assert np.abs(share - 0.3).max() < 4.5 * np.sqrt(0.3 * 0.7 / len(found))  # the largest of 460


def test_infilling_is_reversible():
    """With the spans in the places of their masks, the text is there again; a mask of no tokens is one too many."""
    rng = np.random.default_rng(1)
    for length in (1, 2, 7, 100, 500):
        for ids in texts(20, length):
            noisy, spans = kinds.infilled(ids, cfg.Noise(), MASKED, rng)
            assert (noisy == MASKED).sum() == len(spans)
            lengths = np.ones(len(noisy), int)
            lengths[noisy == MASKED] = spans
            places = np.split(ids, np.cumsum(lengths)[:-1])
            assert sum(map(len, places)) == length
            for token, place in zip(noisy, places, strict=True):
                assert token == MASKED or place.tolist() == [token]


def test_a_row_with_infilling_matches_its_target():
    made, given = noise(permuted=0.0), texts(50)
    for i in range(50):
        pattern = b"".join(b".*" if i == MASKED else re.escape(bytes([i])) for i in source_of(made(given, i)))
        assert re.fullmatch(pattern, bytes(given[i][:127].tolist()), re.DOTALL)
        assert MASKED in made(given, i).source


@pytest.mark.parametrize("share", [0.1, 0.15, 0.5])
def test_masks_and_deletions_have_their_share(share):
    rng, ids = np.random.default_rng(2), np.arange(200, dtype=np.int32)
    where = np.zeros((2, 200))
    for _ in range(1000):
        masked = kinds.token_masked(ids, share, 999, rng)
        assert (masked == 999).sum() == round(share * 200)
        np.testing.assert_array_equal(masked[masked != 999], ids[masked != 999])
        kept = kinds.deleted(ids, share, rng)
        assert len(kept) == 200 - round(share * 200) and (np.diff(kept) > 0).all()
        where[0] += masked == 999
        where[1] += ~np.isin(ids, kept)
    assert np.abs(where / 1000 - share).max() < 4.5 * np.sqrt(share * (1 - share) / 1000)  # the largest of 400
    assert abs((where[:, ::2] / 1000).mean() - share) < 3 * np.sqrt(share * (1 - share) / 2e5)


def test_documents_begin_with_any_token_alike():
    rng, ids = np.random.default_rng(3), np.arange(20, dtype=np.int32)
    firsts = []
    for _ in range(4000):
        found = kinds.rotated(ids, rng)
        np.testing.assert_array_equal(np.roll(found, found[0]), ids)
        firsts.append(found[0])
    counts = np.bincount(firsts, minlength=20)
    assert np.square(counts - 200).sum() / 200 < 19 + 3 * np.sqrt(2 * 19)  # chi squared
    rows = [noise(**(NOTHING | dict(rotated=0.3)))(texts(500), i) for i in range(500)]
    turned = np.mean([not np.array_equal(source_of(row), row.targets[:-1]) for row in rows])
    within(turned, 0.3 * 126 / 127, 500)  # a rotation by nothing is one, too


def test_sentences_are_permuted_alike():
    rng, text = np.random.default_rng(4), np.frombuffer(b"One. Two. Three. And", np.uint8).astype(np.int32)
    stops = kinds.full_stops(WORDS)
    assert stops.tolist() == [STOP]
    orders: dict[bytes, int] = {}
    for _ in range(2400):
        found = bytes(kinds.permuted(text, stops, 1.0, rng).tolist())
        orders[found] = orders.get(found, 0) + 1
    assert len(orders) == 24 and b"One. Two. Three. And" in orders and b" Two. AndOne. Three." in orders
    assert all(sorted(order) == sorted(b"One. Two. Three. And") for order in orders)
    assert sum((count - 100) ** 2 for count in orders.values()) / 100 < 23 + 3 * np.sqrt(2 * 23)  # chi squared
    stay = [np.array_equal(kinds.permuted(text, stops, 0.5, rng), text) for _ in range(2000)]
    within(np.mean(stay), 0.5, 2000)  # two of four sentences change places, or not
    np.testing.assert_array_equal(kinds.permuted(text, stops, 0.25, rng), text)


def test_full_stops_of_a_larger_tokenizer():
    books = tokenizer.load("books")
    stops = kinds.full_stops(books)
    assert all(books.decode([i]).rstrip().endswith(".") for i in stops)
    assert books.encode("He went home.")[-1] in stops and books.eot not in stops


def test_documents_stay_where_they_are():
    every = dict(permuted=1.0, rotated=1.0, deleted=0.1, masked=0.1, infilling=0.2)
    made = noise(**every)
    text = np.where(np.arange(128) % 40 == 39, WORDS.eot, texts(1)[0]).astype(np.int32)
    ids = np.where(text == STOP, 0, text)
    for i in range(50):
        source = source_of(made([ids] * 50, i))
        documents = np.split(source, np.flatnonzero(source == WORDS.eot) + 1)
        assert len(documents) == 4
        for number, document in enumerate(documents):
            of_text = ids[40 * number : 40 * number + 40]
            assert np.isin(document[document != MASKED], of_text).all()
        assert not np.isin(source, [WORDS.vocab_size - 1, WORDS.vocab_size - 2]).any()
    ends = np.full(128, WORDS.eot, np.int32)
    np.testing.assert_array_equal(source_of(made([ends], 0)), ends[:127])  # nothing but ends: they stay


def test_many_inserted_masks_are_cut():
    made = noise(length=16, infilling=0.99, span=1.0, **dict(permuted=0.0))
    rows = [made(texts(300, 16), i) for i in range(300)]
    assert max(len(source_of(row)) for row in rows) == 15


def test_rows_are_functions_of_index_and_seed():
    given, made = texts(1) * 20, noise()
    rows = [made(given, i).source.tobytes() for i in range(20)]
    assert len(set(rows)) == 20
    assert [noise()(given, i).source.tobytes() for i in reversed(range(20))] == rows[::-1]
    assert noise(seed=1)(given, 0).source.tobytes() != rows[0]
    assert made.name != noise(deleted=0.1).name


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"config\.data\.source_length=64 must be at least config\.train"):
        noise(source=64)
    with pytest.raises(ValueError, match=r"'bytes' has no token <\|mask\|>"):
        noise_of(config(), tokenizer.load("bytes"))
