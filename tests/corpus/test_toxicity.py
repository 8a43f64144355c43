"""Documents rated by a classifier, in windows; tests/align/test_rating.py has a test with a real run."""

import pytest

from scaling.corpus.filters import toxicity
from scaling.corpus.filters.toxicity import Rater, Toxicity
from tests.corpus.test_quality import table

ROOM = 10  # tokens, which are characters here


def rater(asked):
    """The share of the letter x; it notes what it is asked."""

    def rate(texts):
        asked.extend(texts)
        return [text.count("x") / len(text) for text in texts]

    return Rater(rate, lambda text: len(text) - ROOM, ROOM)


def test_toxic_documents_are_dropped():
    asked = []
    documents = table(["aaaa", "xxxx", "xa", "", " \n"])
    kept, tally = toxicity.stage(documents, Toxicity(), rater(asked))
    assert asked == ["aaaa", "xxxx", "xa"]
    assert kept["text"].to_pylist() == ["aaaa", "", " \n"] and kept["toxicity"].to_pylist() == [0.0, 0.0, 0.0]
    assert tally.counts == {"toxic": 2} and sum(tally.histograms["toxic"]) == 5
    assert len(toxicity.stage(documents, Toxicity(threshold=0.6), rater([]))[0]) == 4
    assert len(toxicity.stage(table([]), Toxicity(), rater([]))[0]) == 0


def test_a_long_document_is_read_whole_in_windows():
    asked = []
    text = "aaa xxxx aaaa bbbbbbbbbbbbbbbbbbbbbbbb xxxxxxxx aa"
    (highest,) = toxicity.rate([text], "max", rater(asked))
    assert "".join(asked).replace(" ", "") == text.replace(" ", "") and all(len(window) <= ROOM for window in asked)
    assert highest == max(window.count("x") / len(window) for window in asked) > 0.7
    (mean,) = toxicity.rate([text], "mean", rater([]))
    assert mean == pytest.approx(text.count("x") / sum(map(len, asked)))
    assert toxicity.rate(["aa", text, "x"], "max", rater([])).tolist() == [0.0, highest, 1.0]


def test_the_highest_of_negative_numbers_is_negative():
    negative = Rater(lambda texts: [-len(text) for text in texts], lambda text: len(text) - ROOM, ROOM)
    assert toxicity.rate(["aa", "", "a" * 20], "max", negative).tolist() == [-2.0, 0.0, -10.0]


def test_windows_are_cut_at_white_space_where_there_is_some():
    text = "word " * 30
    assert all(set(window.split()) == {"word"} for window in toxicity.windows(text, rater([])))
    assert [*toxicity.windows("a" * 25, rater([]))] == ["a" * 8, "a" * 8, "a" * 9]
    assert [*toxicity.windows("  ", rater([]))] == []


def test_windows_are_rated_some_at_a_time(monkeypatch):
    texts = [f"{'x' * (n % 4)}aaa {'x' * n}" for n in range(40)]
    whole = toxicity.rate(texts, "max", rater([]))
    monkeypatch.setattr(toxicity, "_TOGETHER", 3)
    assert toxicity.rate(texts, "max", rater([])).tolist() == whole.tolist()


def test_it_is_off_by_default():
    documents = table(["xxxx"])
    assert toxicity.load(Toxicity()) is None
    kept, tally = toxicity.stage(documents, Toxicity(), toxicity.load(Toxicity()))
    assert kept.equals(documents) and not tally.counts
    for knobs, said in (
        ({"pool": "sum"}, "toxicity.pool='sum' must be one of max, mean"),
        ({"threshold": float("nan")}, "number"),
    ):
        with pytest.raises(ValueError, match=said):
            Toxicity(**knobs)
