"""Prefix language modelling: a text in two parts."""

import numpy as np
import pytest

from scaling.config import schema as cfg
from scaling.data import tokenizer
from scaling.data.noise.by_name import noise_of

WORDS = tokenizer.load("bytes")


def noise(source=0, length=16, seed=0, encoder=1):
    return noise_of(
        cfg.Config(
            seed=seed, data=cfg.Data(objective="prefix", source_length=source),
            train=cfg.Train(sequence_length=length), model=cfg.Model(encoder_layers=encoder, prefix_lm=not encoder),
        ),
        WORDS,
    )  # fmt: skip


def texts(count, length):
    return list(np.random.default_rng(0).integers(0, 256, (count, length)).astype(np.int32))


def test_both_parts_make_the_text_and_are_cut_anywhere_alike():
    for source, length, taken in ((0, 16, 16), (24, 16, 16), (12, 16, 12)):
        made = noise(source, length)
        assert made.taken == taken and made.room == length
        given, places = texts(3000, taken + 1), []
        for i in range(3000):
            row = made(given, i)
            first, second = row.source[row.source_segments == 0], row.targets[row.weights == 1]
            assert first[-1] == second[-1] == WORDS.eot
            np.testing.assert_array_equal(np.concatenate([first[:-1], second[:-1]]), given[i][:-1])
            np.testing.assert_array_equal(row.tokens[: len(second)], [WORDS.decoder_start, *second[:-1]])
            places.append(len(first) - 1)
        counts = np.bincount(places, minlength=taken)[1:]
        assert len(counts) == taken - 1 and row.source.shape == (source or length,)
        expected = 3000 / (taken - 1)
        assert np.square(counts - expected).sum() / expected < taken - 2 + 3 * np.sqrt(2 * (taken - 2))  # chi squared


def test_a_decoder_alone_reads_both_parts_in_one_row():
    made = noise(encoder=0)
    given, sizes = texts(3000, 17), []
    for i in range(3000):
        row = made(given, i)
        np.testing.assert_array_equal(row.tokens, given[i][:-1])
        np.testing.assert_array_equal(row.targets, given[i][1:])
        size = int(np.flatnonzero(row.weights)[0]) + 1  # of the prefix: its last token predicts
        assert (row.weights[size - 1 :] == 1).all()
        assert (row.order[:size] == row.order[0]).all() and (np.diff(row.order[size - 1 :]) > 0).all()
        sizes.append(size)
    counts = np.bincount(sizes, minlength=17)[1:]
    expected = 3000 / 16
    assert len(counts) == 16
    assert np.square(counts - expected).sum() / expected < 15 + 3 * np.sqrt(2 * 15)  # chi squared


def test_rows_are_functions_of_index_and_seed():
    given = texts(1, 17) * 20
    rows = [noise()(given, i).source.tobytes() for i in range(20)]
    assert [noise()(given, i).source.tobytes() for i in reversed(range(20))] == rows[::-1]
    assert len(set(rows)) > 5  # of 15 places
    assert rows != [noise(seed=1)(given, i).source.tobytes() for i in range(20)]


def test_texts_that_cannot_be_cut_are_refused():
    with pytest.raises(ValueError, match=r"config\.data\.source_length=1 must be at least 2"):
        noise(source=1)
    with pytest.raises(ValueError, match=r"config\.train\.sequence_length=1 must be at least 2"):
        noise(length=1)
