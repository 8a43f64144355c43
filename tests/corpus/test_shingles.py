"""Words, shingles, signatures and bands, against plain Python."""

import numpy as np
import pyarrow as pa
import pytest

from scaling.corpus.duplicates import shingles


def words(*texts):
    return shingles.words(pa.array(texts, pa.large_string())).to_pylist()


def test_words_are_letters_marks_and_digits_in_lower_case():
    assert words("The  Cat,\n(SAT) on-the 3.5 mat!") == ["the cat sat on the 3 5 mat"]
    assert words("", " \t", "!?", "a", " \u2014 \u00bb") == ["", "", "", "a", ""]
    assert words("\u00c9t\u00e9", "E\u0301te\u0301") == ["e\u0301te\u0301"] * 2
    assert words("\uff21\uff22 \ufb01") == ["ab fi"]
    assert words("\u043f\u0440\u0438\u0432\u0435\u0442, \u041c\u0418\u0420") == [
        "\u043f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440"
    ]
    assert words("\u0939\u093f\u0928\u094d\u0926\u0940") == ["\u0939\u093f\u0928\u094d\u0926\u0940"]


def test_every_character_is_a_word_in_scripts_without_spaces():
    assert words("plain", "\u732b\u5750\u3002mat", "caf\u00e9") == ["plain", "\u732b \u5750 mat", "cafe\u0301"]
    assert words("\u0e41\u0e21\u0e27") == ["\u0e41 \u0e21 \u0e27"]


def test_words_are_counted():
    normal = shingles.words(pa.array(["", "!", "a", "a b", "a, b c"], pa.large_string()))
    assert shingles.word_counts(normal).tolist() == [0, 0, 1, 2, 3]


@pytest.mark.parametrize("ngram", [1, 2, 5])
def test_similarity_is_that_of_sets_of_tuples(ngram):
    numbers = np.random.default_rng(1)
    texts = [" ".join(map(str, numbers.integers(0, 12, size))) for size in (5, 9, 30, 30, 200, 201, 77)]
    found = shingles.shingle_sets(pa.array(texts, pa.large_string()), ngram)
    exact = [{tuple(t.split()[n : n + ngram]) for n in range(len(t.split()) - ngram + 1)} for t in texts]
    assert [len(one) for one in found] == [len(one) for one in exact]
    for a, b in [(x, y) for x in range(len(texts)) for y in range(len(texts))]:
        expected = len(exact[a] & exact[b]) / len(exact[a] | exact[b])
        assert shingles.jaccard(found[a], found[b]) == pytest.approx(expected)


def test_sets_of_a_slice_are_its_own():
    texts = pa.array(["a b c d e f", "g h i j k l m", "n o p q r"], pa.large_string())
    whole = shingles.shingle_sets(texts, 5)
    for row in range(3):
        np.testing.assert_array_equal(shingles.shingle_sets(texts.slice(row, 1), 5)[0], whole[row])


def test_signatures_agree_as_often_as_the_sets_are_similar():
    base = [f"w{n}" for n in range(400)]
    other = base[:]
    for place in range(20, 400, 40):
        other[place] = "x"
    normal = pa.array([" ".join(base), " ".join(other)], pa.large_string())
    one, two = shingles.signatures(normal, 2000, 5, seed=1)
    similarity = shingles.jaccard(*shingles.shingle_sets(normal, 5))
    assert 0.7 < similarity < 0.8
    assert abs((one == two).mean() - similarity) < 4 * (similarity * (1 - similarity) / 2000) ** 0.5


def test_bands_differ_by_position_and_by_any_value():
    made = np.full((2, 6), 7, np.uint32)
    made[1, 5] = 8
    hashed = shingles.band_hashes(made, 3)
    assert hashed.shape == (2, 3) and len(set(hashed[0].tolist())) == 3
    assert (hashed[0] == hashed[1]).tolist() == [True, True, False]


def test_the_curve_of_bands():
    # MMDS, section 3.4.2, table of 1 - (1 - s^5)^20
    for similarity, expected in ((0.2, 0.006), (0.3, 0.047), (0.4, 0.186), (0.5, 0.470), (0.6, 0.802), (0.7, 0.975)):
        assert shingles.candidate_probability(similarity, 20, 5) == pytest.approx(expected, abs=6e-4)
    for bands, rows in ((14, 8), (2, 5), (10, 1)):
        half = shingles.half_point(bands, rows)
        assert shingles.candidate_probability(half, bands, rows) == pytest.approx(0.5)
    assert shingles.half_point(14, 8) == pytest.approx(0.685, abs=1e-3)


def test_batches_hold_some_bytes_or_one_document(monkeypatch):
    monkeypatch.setattr(shingles, "_BATCH", 10)
    texts = pa.chunked_array([["aaaa", "bbbb", "cc", "d" * 30, "e"], [], ["f"]], pa.large_string())
    assert [batch.to_pylist() for batch in shingles.batches(texts)] == [
        ["aaaa", "bbbb", "cc"],
        ["d" * 30],
        ["e"],
        ["f"],
    ]
