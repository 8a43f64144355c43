"""Scores of answers, and their standard errors. Imports sacrebleu only where BLEU is asked for."""

import collections
import decimal
import math
import random
import re
import string
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

RESAMPLES = 1000  # of the bootstrap


_TRIVIAQA_PUNCTUATION = string.punctuation + "\u2018\u2019\u00b4"

# A sign and a currency in either order, digits, decimals. Commas between digits are dropped, as the authors of GSM8K
# and lm-evaluation-harness do; a space separates groups of three digits. What looks like a part of something that is
# no decimal number (1/2, 3:30, 1.2.3, 5-7) is none. The rest, a unit or a full stop, says nothing of the value.
_NUMBER = re.compile(
    r"""\s* (?P<sign>[-+\u2212]?) \s* (?:\\?[$\u00a2-\u00a5\u20a0-\u20bf])? \s* (?P<late_sign>[-+\u2212]?)
    (?P<whole>(?>\d{1,3}(?:[ \u00a0\u2009\u202f]\d{3})+ | \d+(?:,\d+)* |)) (?P<decimals>\.\d+)?
    (?![eE][-+]?\d | [.,:/^*\u2013-]*\d | \ ?/\ ?\d)""",
    re.VERBOSE,
)


def normalize_answer(text: str, rule: str = "squad") -> str:
    """An answer in lower case, without punctuation, articles and extra white space; composed (Unicode NFC).

    Args:
        text: the answer.
        rule: ``squad`` drops ASCII punctuation: the official script of SQuAD 1.1 (Rajpurkar et al. 2016), also Natural
            Questions'. ``triviaqa`` puts a space for it, and for typographic apostrophes: the official script of
            TriviaQA (Joshi et al. 2017), by which ``rock-and-roll`` is ``rock and roll``.
    """
    text = unicodedata.normalize("NFC", text).lower()
    dropped, put = (_TRIVIAQA_PUNCTUATION, " ") if rule == "triviaqa" else (string.punctuation, "")
    text = "".join(put if c in dropped else c for c in text)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact(prediction: str, references: Sequence[str]) -> float:
    """1 if the answer is one of the references to the letter, but for white space around it.

    For words: ``exact_match`` takes -5 for 5. Numbers that may be written in several ways want ``exact_number``.
    """
    letters = [unicodedata.normalize("NFC", text.strip()) for text in (prediction, *references)]
    return float(letters[0] in letters[1:])


def number(text: str) -> decimal.Decimal | None:
    """The number that a text begins with, exactly; None if it begins with none.

    ``$29.00``, ``+29``, ``29.`` and ``29 apples`` are 29, ``1,000`` and ``1 000`` are 1000, ``.5`` is 0.5, ``-$5`` is
    -5. A percent sign is a unit: ``25%`` is 25. ``1/2``, ``3:30`` and ``1e5`` are no decimal numbers.
    """
    found = _NUMBER.match(text)
    if found is None or not (found["whole"] or found["decimals"]) or (found["sign"] and found["late_sign"]):
        return None
    sign = "-" if (found["sign"] or found["late_sign"]) in ("-", "\u2212") else ""
    return decimal.Decimal(sign + re.sub(r"[,\s]", "", found["whole"] or "0") + (found["decimals"] or ""))


def exact_number(prediction: str, references: Sequence[str]) -> float:
    """1 if the answer begins with the same number (``number``) as one of the references."""
    found = number(prediction)
    return float(found is not None and found in map(number, references))


def exact_match(prediction: str, references: Sequence[str], rule: str = "squad") -> float:
    """1 if the normalized answer (``normalize_answer``) is one of the normalized references."""
    wanted = normalize_answer(prediction, rule)
    return float(any(wanted == normalize_answer(reference, rule) for reference in references))


def f1(prediction: str, references: Sequence[str], rule: str = "squad") -> float:
    """The best F1 of the bags of normalized words over the references; 1 if both are empty, as in SQuAD 2.0."""
    words = normalize_answer(prediction, rule).split()
    return max(_f1(words, normalize_answer(reference, rule).split()) for reference in references)


def _f1(prediction: list[str], reference: list[str]) -> float:
    if not prediction or not reference:
        return float(prediction == reference)
    common = sum((collections.Counter(prediction) & collections.Counter(reference)).values())
    return 2 * common / (len(prediction) + len(reference))


def extract(text: str, pattern: str, remove: str) -> str:
    """What a task compares of a generated text: the first match of ``pattern`` (its first group), less ``remove``.

    A text without a match gives "", which is no right answer.
    """
    if pattern:
        found = re.search(pattern, text)
        text = "" if found is None else found[1] if found.re.groups else found[0]
    return (re.sub(remove, "", text) if remove else text).strip()


def macro_f1(golds: Sequence[int], predictions: Sequence[int]) -> float:
    """The mean over classes of their F1, as SuperGLUE scores CB; classes that occur in neither are left out."""
    scores = []
    for label in sorted({*golds, *predictions}):
        right = sum(g == p == label for g, p in zip(golds, predictions, strict=True))
        scores.append(2 * right / (sum(g == label for g in golds) + sum(p == label for p in predictions)))
    return sum(scores) / len(scores)


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU by sacrebleu with its defaults, 0 to 100. Items may have different numbers of references.

    Raises:
        ValueError: sacrebleu is not installed.
    """
    return _bleu_metric().corpus_score(list(predictions), _streams(references)).score


def bleu_with_error(
    predictions: Sequence[str], references: Sequence[Sequence[str]], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Corpus BLEU and the standard deviation of BLEU over resamples of the items (bootstrap).

    Raises:
        ValueError: sacrebleu is not installed.
    """
    metric = _bleu_metric()
    # Counts of n-grams an item, once; a resample only adds them up. sacrebleu's own bootstrap does the same.
    statistics = metric._extract_corpus_statistics(list(predictions), _streams(references))

    def score(places: Sequence[int]) -> float:
        return metric._aggregate_and_compute([statistics[place] for place in places]).score

    return score(range(len(predictions))), bootstrap_error(score, len(predictions), resamples, seed)


def _streams(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    longest = max(map(len, references))
    return [[r[k] if k < len(r) else None for r in references] for k in range(longest)]


def _bleu_metric() -> Any:
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        raise ValueError("BLEU needs sacrebleu; pip install 'scaling[eval]'") from None
    return BLEU()


def error_text(error: float) -> str:
    """A standard error for people; "-" where there is none."""
    return f"{error:.3f}" if math.isfinite(error) else "-"


def finite(value: float) -> float | None:
    """A number as JSON has it: what is not finite is null."""
    return value if math.isfinite(value) else None


def mean_with_error(scores: Sequence[float]) -> tuple[float, float]:
    """The mean of per-item scores and its standard error, sqrt(variance / n) with the variance over n - 1.

    For scores of 0 and 1 this is sqrt(p (1 - p) / (n - 1)), as in lm-evaluation-harness. One score has no error: NaN.

    Raises:
        ValueError: no scores.
    """
    if not scores:
        raise ValueError("there are no scores to average")
    count = len(scores)
    mean = sum(scores) / count
    if count == 1:
        return mean, math.nan
    # hypot: the square of a perplexity, for instance, can be too large for a float.
    return mean, math.hypot(*(score - mean for score in scores)) / math.sqrt(count * (count - 1))


def bootstrap_error(
    score: Callable[[Sequence[int]], float], count: int, resamples: int = RESAMPLES, seed: int = 0
) -> float:
    """Standard deviation of ``score(places)`` over resamples of ``count`` items, for scores that are no means.

    One item has none: NaN.
    """
    if count == 1:
        return math.nan
    rng = random.Random(seed)
    scores = [score(rng.choices(range(count), k=count)) for _ in range(resamples)]
    mean = sum(scores) / resamples
    return math.hypot(*(value - mean for value in scores)) / math.sqrt(max(resamples - 1, 1))
