"""Objectives of pre-training that change the text: a row is a pure function of the sequence, its index and a seed.

So a sequence has other noise in each epoch, and the same on every mesh and after a restart. The ids of control tokens
and of the end of a text are never masked, and never drawn.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from scaling.config.schema import Noise as Knobs
from scaling.data.batch import Batch, Scored, restarted, scored
from scaling.data.tokenizer_base import BEGIN, MASK, SEPARATOR, Tokenizer

_OTHERS = 2**20  # of endless sequences, the first so many are drawn from


class Special(NamedTuple):
    """Ids of tokens that no text has.

    Attributes:
        mask: stands where a token is hidden.
        begin: stands before a text.
        separator: stands after each text.
        all: sorted ids of these, of all other control tokens, and of the end of a text.
        vocab_size: ids are below it.
    """

    mask: int
    begin: int
    separator: int
    all: np.ndarray
    vocab_size: int

    @classmethod
    def of(cls, words: Tokenizer) -> "Special":
        """Those of a tokenizer.

        Raises:
            ValueError: it has no such tokens.
        """
        mask, begin, separator = (words.special(token) for token in (MASK, BEGIN, SEPARATOR))
        every = np.asarray(sorted({*words.controls.values(), words.eot}), np.int32)
        return cls(mask, begin, separator, every, words.vocab_size)


def masked(ids: np.ndarray, knobs: Knobs, special: Special, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Hides tokens as BERT does (arXiv 1810.04805, section 3.1 and appendix A.1).

    Of the tokens that are no special ones, ``knobs.rate`` are chosen, rounded, and at least one. Of these,
    ``knobs.random`` become any token, ``knobs.kept`` stay, and the others become the mask.

    Args:
        ids: int32 [T].
        knobs: see there.
        special: of the tokenizer.
        rng: what is drawn.

    Returns:
        The ids with noise, int32 [T], and 1 where a token was chosen, else 0, float32 [T].
    """
    ordinary = np.flatnonzero(~np.isin(ids, special.all))
    count = min(len(ordinary), max(1, round(knobs.rate * len(ordinary))))
    chosen = rng.choice(ordinary, count, replace=False)
    fate = rng.random(count)
    noisy, weights = ids.copy(), np.zeros(len(ids), np.float32)
    weights[chosen] = 1
    noisy[chosen[fate >= knobs.random + knobs.kept]] = special.mask
    changed = chosen[fate < knobs.random]
    noisy[changed] = _ordinary(special, len(changed), rng)
    return noisy, weights


def _ordinary(special: Special, count: int, rng: np.random.Generator) -> np.ndarray:
    """Ids of tokens that are no special ones, each as likely as any other."""
    drawn = rng.integers(special.vocab_size - len(special.all), size=count)
    for each in special.all:  # sorted: each special id moves those from it on by one
        drawn += drawn >= each
    return drawn


@dataclasses.dataclass(frozen=True)
class Noise:
    """What an objective makes of sequences.

    Attributes:
        name: of the objective and its knobs.
        taken: tokens of the text in a row of so many.
        row: (sequences int32 [taken + 1], index, what is drawn) to a row of arrays [T].
        seed: of all that is drawn.
    """

    name: str
    taken: Callable[[int], int]
    row: Callable[[Sequence[np.ndarray], int, np.random.Generator], Batch | Scored]
    seed: int

    def __call__(self, sequences: Sequence[np.ndarray], index: int) -> Batch | Scored:
        """The row of an index."""
        return self.row(sequences, index, np.random.default_rng((self.seed, index)))


@dataclasses.dataclass(frozen=True)
class Noisy(Sequence[Batch | Scored]):
    """Rows made of sequences.

    Attributes:
        sequences: of tokens, int32 [taken + 1] each.
        noise: what is made of them.
    """

    sequences: Sequence[np.ndarray]
    noise: Noise

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index):
        return self.noise(self.sequences, index)


def noise_of(objective: str, knobs: Knobs, words: Tokenizer, separator: int | None, seed: int) -> Noise | None:
    """The noise of ``config.data.objective``; None = next-token prediction has none.

    Args:
        objective: its name.
        knobs: ``config.noise``.
        words: tokenizer.
        separator: the end-of-text token, where attention is to stay inside documents; None = they see each other.
        seed: of all that is drawn.

    Raises:
        ValueError: the tokenizer has no mask.
    """
    if objective == "next_token":
        return None
    special = Special.of(words)

    def mlm(sequences: Sequence[np.ndarray], index: int, rng: np.random.Generator) -> Batch:
        ids = np.concatenate([[special.begin], sequences[index][:-1]]).astype(np.int32)
        noisy, weights = masked(ids, knobs, special, rng)
        if separator is None:
            return Batch(noisy, ids, weights)
        segments = np.cumsum(ids == separator, dtype=np.int32)
        return Batch(noisy, ids, weights, restarted(segments), segments)

    def pairs(sequences: Sequence[np.ndarray], index: int, rng: np.random.Generator) -> Scored:
        texts, label = pair(sequences, index, rng, swaps=objective == "mlm_sop")
        ids = [special.begin, *texts[0], special.separator, *texts[1], special.separator]
        row = scored(
            np.asarray(ids, np.int32), len(ids), label, types=np.repeat([0, 1], [len(texts[0]) + 2, len(texts[1]) + 1])
        )
        noisy, weights = masked(row.tokens, knobs, special, rng)
        return row._replace(tokens=noisy, targets=row.tokens, weights=weights, segments=None)

    if objective == "mlm":
        return Noise(f"{objective} {knobs}", lambda length: length - 1, mlm, seed)
    return Noise(f"{objective} {knobs}", lambda length: length - 3, pairs, seed)


def pair(
    sequences: Sequence[np.ndarray], index: int, rng: np.random.Generator, swaps: bool
) -> tuple[tuple[np.ndarray, np.ndarray], int]:
    """Two texts that fill a row: half of the time they follow each other (0), otherwise not (1).

    The place where the first one ends is drawn. In the second case the second text is of another sequence (BERT: arXiv
    1810.04805, section 3.1), or the two are swapped (ALBERT: arXiv 1909.11942, section 3.1).
    """
    text = sequences[index][:-1]
    end = int(rng.integers(1, len(text)))
    first, second = text[:end], text[end:]
    if rng.random() < 0.5:
        return (first, second), 0
    if swaps:
        return (second, first), 1
    other = int(rng.integers(min(len(sequences), _OTHERS) - 1))
    return (first, sequences[other + (other >= index)][: len(second)]), 1
