"""Drops documents that a classifier of this project calls toxic: a run of ``scaling align finetune``.

The InstructGPT paper (Ouyang et al., arXiv 2203.02155, section 5) names filtering of the pre-training data as a remedy
for toxic output. Documents are dropped by the probability of a class of the run, or by its number if it has no classes.
A document that is longer than the model's context is rated in windows.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from scaling.config.knob import knob
from scaling.corpus import documents as parts
from scaling.corpus.outcome import Tally, kept
from scaling.evaluate.tasks.request import Item
from scaling.evaluate.tasks.templates import placeholders

POOLS = ("max", "mean")
REASON = "toxic"
_TOGETHER = 1024  # windows whose tokens are in memory at a time


@dataclasses.dataclass(frozen=True)
class Toxicity:
    """Knobs of the filter of toxic text."""

    classifier: str = knob("", "path", "run directory of scaling align finetune; empty = the stage is off")
    label: str = knob("toxic", "", "the class whose probability is the toxicity, in any letters")
    threshold: float = knob(0.5, "", "documents of at least this toxicity are dropped")
    pool: str = knob("max", "", "toxicity of several windows: max, or mean (weighted by their characters)")

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise ValueError(f"toxicity.pool={self.pool!r} must be one of {', '.join(POOLS)}")
        if math.isnan(self.threshold):
            raise ValueError("toxicity.threshold must be a number")


@dataclasses.dataclass(frozen=True)
class Rater:
    """What says how toxic texts are.

    Attributes:
        rate: a number for each text that fits.
        excess: by how many tokens a text exceeds what the rater reads; 0 or less if it fits.
        room: tokens that the rater reads.
    """

    rate: Callable[[Sequence[str]], Sequence[float]]
    excess: Callable[[str], int]
    room: int


def stage(documents: pa.Table, knobs: Toxicity, rater: Rater | None) -> tuple[pa.Table, Tally]:
    """Drops toxic documents, and adds the column ``toxicity``, float64; empty documents have 0.

    Args:
        documents: of a part.
        knobs: ``threshold`` and ``pool`` are used.
        rater: of ``load``; None = all documents stay, and there is no new column.
    """
    tally = Tally()
    if rater is None:
        return documents, tally
    toxicity = rate(documents["text"].to_pylist(), knobs.pool, rater)
    tally.score(REASON, toxicity.tolist())
    documents = parts.with_column(documents, "toxicity", pa.array(toxicity))
    return kept(documents, np.where(toxicity >= knobs.threshold, REASON, "").tolist(), tally), tally


def rate(texts: Sequence[str], pool: str, rater: Rater) -> np.ndarray:
    """The toxicity of each text, float64 [n], from those of its windows."""
    cut = [(number, window) for number, text in enumerate(texts) for window in windows(text, rater)]
    owners = np.array([number for number, _ in cut], np.int64)
    ratings = np.zeros(len(cut))
    for first in range(0, len(cut), _TOGETHER):
        ratings[first : first + _TOGETHER] = rater.rate([window for _, window in cut[first : first + _TOGETHER]])
    if pool == "max":
        found = np.full(len(texts), -np.inf)  # a number of a run without classes may be negative
        np.maximum.at(found, owners, ratings)
        return np.where(np.isneginf(found), 0.0, found)
    sizes = np.array([len(window) for _, window in cut], np.float64)
    totals = np.bincount(owners, sizes, len(texts))
    return np.bincount(owners, sizes * ratings, len(texts)) / np.maximum(totals, 1)


def windows(text: str, rater: Rater) -> Iterator[str]:
    """Cuts a text into pieces of about the same length that the rater can read, at white space where there is some.

    Pieces have no white space at their ends; empty ones are left out.
    """
    text = text.strip()
    if not text:
        return
    excess = rater.excess(text)
    if excess <= 0 or len(text) == 1:
        yield text
        return
    count = min(len(text), max(2, math.ceil((rater.room + excess) / rater.room)))
    first = 0
    for piece in range(1, count + 1):
        last = _cut(text, first, len(text) * piece // count)
        yield from windows(text[first:last], rater)
        first = last


def _cut(text: str, first: int, last: int) -> int:
    """A place to cut, at the last white space of the second half of the piece, or else at its end."""
    if last >= len(text):
        return len(text)
    for place in range(last, (first + last) // 2, -1):
        if text[place].isspace():
            return place
    return last


@functools.cache
def load(knobs: Toxicity) -> Rater | None:
    """The classifier of the knobs; None if they name none. It is kept for the other parts that a process works on.

    Raises:
        FileNotFoundError: no run there.
        ValueError: it is no run of ``align finetune``, or has no such class, or reads more than one text.
    """
    if not knobs.classifier:
        return None
    from scaling.align import classify  # here, because it imports JAX

    classifier = classify.load(knobs.classifier)
    found = functools.partial(classify.rate, classifier, knobs.label)
    found([])  # refuses a run that does not have the class, or reads more than one text
    (field,) = (name for template in classifier.task.layout.texts for name in placeholders(template))

    def excess(text: str) -> int:
        return classifier.excess(classifier.task.example(Item("", "a document", {field: text}), labelled=False))

    return Rater(found, excess, classifier.served.network.model.context_length)
