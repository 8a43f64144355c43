"""Metrics against values worked out by hand, and BLEU against sacrebleu."""

import decimal
import math
import random
import statistics
import sys

import pytest

from scaling.evaluate.scoring import metrics
from scaling.evaluate.tasks.kinds import KINDS


def test_squad_normalisation():
    assert metrics.normalize_answer("  The  Cat's\tHAT, an egg! ") == "cats hat egg"
    assert metrics.normalize_answer("theatre, another") == "theatre another"


def test_exact_keeps_the_sign_that_exact_match_loses():
    assert metrics.exact(" -5 ", ["-5"]) == 1 and metrics.exact("5", ["-5"]) == 0
    assert metrics.exact("caf\u00e9", ["cafe\u0301"]) == 1
    assert metrics.exact_match("5", ["-5"]) == 1
    assert metrics.exact_match("the Beatles.", ["Rolling Stones", "Beatles"]) == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$29.00", "29"), ("+5", "5"), ("2.50", "2.5"), (".5", "0.5"), ("1 000", "1000"), ("1,000", "1000"),
        ("1\u202f000.25 apples", "1000.25"), ("25%", "25"), ("-$5", "-5"), ("$-5", "-5"), ("\u22125", "-5"),
        ("29.", "29"), ("29. So", "29"), ("\\$1,450,000", "1450000"), ("\u20ac 3", "3"), ("007", "7"), ("-0", "0"),
        ("12 345 6", "12345"), ("12 apples and 3", "12"), ("0.1", "0.1"), ("1" * 400 + ".5", "1" * 400 + ".5"),
        ("1/2", None), ("12 / 5", None), ("3:30", None), ("1e5", None), ("1.2.3", None), ("5-7", None), ("--5", None),
        ("1 0000", None), ("1 000 000,5", None), ("", None), ("$", None), ("five", None), ("is 5", None),
    ],
)  # fmt: skip
def test_numbers(text: str, value: str | None):
    """The authors of GSM8K and lm-evaluation-harness drop commas and take the number that stands first."""
    assert metrics.number(text) == (None if value is None else decimal.Decimal(value))


def test_exact_number_compares_decimals_and_not_floats():
    assert metrics.exact_number("$29.00", ["30", "29"]) == 1 and metrics.exact_number("1000", ["1,000"]) == 1
    assert metrics.exact_number("0.30000000000000004", ["0.3"]) == 0
    assert metrics.exact_number("9007199254740993", ["9007199254740992"]) == 0  # equal as floats
    assert metrics.exact_number("-29", ["29"]) == metrics.exact_number("nothing", ["29"]) == 0


@pytest.mark.parametrize(
    ("prediction", "reference", "squad", "triviaqa"),
    [  # the last two by the official scripts of SQuAD 1.1 and of TriviaQA
        ("rock-and-roll", "rock and roll", 0, 1),
        ("snow_white", "Snow White", 0, 1),
        ("d\u2019Artagnan", "D`Artagnan", 0, 1),
        ("U.S.", "US", 1, 0),
        ("The O'Hara!", "o'hara", 1, 1),
        ("caf\u00e9", "cafe\u0301", 1, 1),  # composed and decomposed
    ],
)
def test_exact_match_by_the_rule_of_the_data_set(prediction: str, reference: str, squad: int, triviaqa: int):
    for metric in (metrics.exact_match, lambda *args, **rule: float(metrics.f1(*args, **rule) == 1)):
        assert metric(prediction, [reference]) == squad
        assert metric(prediction, [reference], rule="triviaqa") == triviaqa


def test_f1_is_the_best_over_the_references():
    # 'cat sat' with 'cat sat down': 2 common, 2 + 3 words
    assert metrics.f1("the cat sat", ["a dog", "the cat sat down"]) == pytest.approx(2 * 2 / 5)
    assert metrics.f1("cat cat", ["cat"]) == pytest.approx(2 * 1 / 3)
    assert metrics.f1("dog", ["cat"]) == 0
    assert metrics.f1("the", ["a"]) == 1 and metrics.f1("", ["cat"]) == 0


def test_extract():
    assert metrics.extract("so $1,234 in all\n#### 1,234", r"#### *([-0-9.,$]*[0-9])", "[,$]") == "1234"
    assert metrics.extract("#### -5.", r"#### *([-0-9.,$]*[0-9])", "[,$]") == "-5"
    assert metrics.extract("no answer", r"#### *(\d+)", "") == ""
    assert metrics.extract(" whole ", "", "") == "whole"


def test_macro_f1():
    golds, predictions = [0, 0, 1, 2], [0, 1, 1, 1]
    # class 0: 2*1/(2+1); class 1: 2*1/(1+3); class 2: 0
    assert metrics.macro_f1(golds, predictions) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert metrics.macro_f1([1, 1], [1, 1]) == 1


def test_standard_error_of_a_proportion():
    mean, error = metrics.mean_with_error([1.0] * 30 + [0.0] * 70)
    assert mean == pytest.approx(0.3) and error == pytest.approx(math.sqrt(0.3 * 0.7 / 99))
    assert metrics.mean_with_error([1.0, 1.0]) == (1.0, 0.0)
    assert metrics.mean_with_error([1.0, 2.0, 6.0]) == pytest.approx((3.0, statistics.stdev([1, 2, 6]) / math.sqrt(3)))
    with pytest.raises(ValueError, match="no scores"):
        metrics.mean_with_error([])


def test_one_item_has_no_standard_error():
    mean, error = metrics.mean_with_error([0.5])
    assert mean == 0.5 and math.isnan(error)
    assert math.isnan(metrics.bootstrap_error(lambda places: 1.0, 1))


def test_the_bootstrap_of_a_huge_perplexity_does_not_overflow():
    error = metrics.bootstrap_error(lambda places: 1e300 * places[0], 2)
    assert error == pytest.approx(5e299, rel=0.05)


def test_bootstrap_of_a_mean_is_its_standard_error():
    rng = random.Random(0)
    scores = [rng.random() for _ in range(200)]
    error = metrics.bootstrap_error(lambda places: sum(scores[p] for p in places) / len(places), len(scores))
    assert error == pytest.approx(metrics.mean_with_error(scores)[1], rel=0.1)


def test_bleu():
    sacrebleu = pytest.importorskip("sacrebleu")
    predictions = ["the cat sat on the mat today", "it is raining in the town", "we saw a red house there"]
    references = [["the cat sat on the mat"], ["it rains in town", "it is raining in town now"], ["we saw a red house"]]
    streams = [[r[0] for r in references], ["", references[1][1], ""]]
    streams[1] = [r[1] if len(r) > 1 else None for r in references]
    expected = sacrebleu.corpus_bleu(predictions, streams).score
    assert metrics.bleu(predictions, references) == pytest.approx(expected) and 10 < expected < 100
    score, error = metrics.bleu_with_error(predictions * 20, references * 20, resamples=100)
    assert score == pytest.approx(expected) and 0 < error < 10
    assert metrics.bleu_with_error(predictions, references, 20, seed=1) == metrics.bleu_with_error(
        predictions, references, 20, seed=1
    )


def test_bleu_without_sacrebleu(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(ValueError, match=r"pip install 'scaling\[eval\]'"):
        metrics.bleu(["a"], [["a"]])


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [  # Lin 2004, section 3: "police kill the gunman" has 3 words of 4 in order, "the gunman kill police" 2
        ("police kill the gunman", ["police killed the gunman"], 3 / 4),
        ("the gunman kill police", ["police killed the gunman"], 2 / 4),
        ("The U.S. army", ["the u s army moved", "none"], 2 * 4 / (4 + 5)),
        ("", ["a"], 0.0),
        ("a b c d", ["d c b a"], 1 / 4),
    ],
)
def test_rouge_l(prediction: str, references: list[str], expected: float):
    assert metrics.rouge_l(prediction, references) == pytest.approx(expected)


def test_every_metric_needs_a_fact_that_some_kind_gives():
    given = {fact for kind in KINDS.values() for fact in kind.gives}
    assert {metric.fact for metric in metrics.METRICS.values()} == given == set(metrics.FACTS)
    assert all((metric.item is None) != (metric.items is None) for metric in metrics.METRICS.values())
