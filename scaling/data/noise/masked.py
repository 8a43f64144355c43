"""Hidden tokens, which an encoder predicts: BERT's masked language modelling, alone or with two texts."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scaling.config.refusal import refused
from scaling.config.schema import Config
from scaling.config.schema import Noise as Knobs
from scaling.data.batch import Batch, Scored, restarted, scored
from scaling.data.noise.row import Noise, special_ids
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
        return cls(mask, begin, separator, special_ids(words), words.vocab_size)


def masked(
    ids: np.ndarray, knobs: Knobs, special: Special, rng: np.random.Generator, of_all: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Hides tokens as BERT does (arXiv 1810.04805, section 3.1 and appendix A.1).

    Of the tokens that are no special ones, ``knobs.rate`` are chosen, rounded, and at least one. Of these,
    ``knobs.random`` become any token, ``knobs.kept`` stay, and the others become the mask.

    Args:
        ids: int32 [T].
        knobs: see there.
        special: of the tokenizer.
        rng: what is drawn.
        of_all: so many are chosen as is the rate of all tokens, special ones among them (ELECTRA's released code).

    Returns:
        The ids with noise, int32 [T], and 1 where a token was chosen, else 0, float32 [T].
    """
    ordinary = np.flatnonzero(~np.isin(ids, special.all))
    count = min(len(ordinary), max(1, round(knobs.rate * len(ids if of_all else ordinary))))
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


def name(config: Config) -> str:
    """Of the objective and the knobs of its noise, for the fingerprint of the data."""
    noise = config.noise
    return f"{config.data.objective} Noise(rate={noise.rate}, random={noise.random}, kept={noise.kept})"


def one_text(config: Config, words: Tokenizer) -> Noise:
    """``mlm``: hidden tokens of the stream; attention stays inside documents with ``config.model.document_mask``.

    ``replaced_token``: the same, with numbers by which a generator draws. Rows hide equally many tokens, unless there
    are too few that are no special ones, and all of these become the mask (ELECTRA: arXiv 2003.10555, section 3.1).

    Raises:
        ValueError: the tokenizer has no mask, or ``config.noise`` asks for other noise than masks.
    """
    special, knobs, room = Special.of(words), config.noise, config.train.sequence_length
    replaces = config.data.objective == "replaced_token"
    for knob in ("random", "kept"):
        if replaces and (value := getattr(knobs, knob)):
            raise refused(f"noise.{knob}", value, "must be 0 with config.data.objective='replaced_token'")

    def row(sequences: Sequence[np.ndarray], index: int, rng: np.random.Generator) -> Batch:
        ids = np.concatenate([[special.begin], sequences[index][:-1]]).astype(np.int32)
        noisy, weights = masked(ids, knobs, special, rng, of_all=replaces)
        row = Batch(noisy, ids, weights, draws=rng.random(room, np.float32) if replaces else None)
        if not config.model.document_mask:
            return row
        segments = np.cumsum(ids == words.eot, dtype=np.int32)
        return row._replace(positions=restarted(segments), segments=segments)

    return Noise(name(config), room - 1, room, row, config.seed)


def two_texts(config: Config, words: Tokenizer) -> Noise:
    """``mlm_nsp`` and ``mlm_sop``: hidden tokens of two texts, and a label for the question about them.

    Raises:
        ValueError: the tokenizer has no mask.
    """
    special, knobs, room = Special.of(words), config.noise, config.train.sequence_length
    swaps = config.data.objective == "mlm_sop"

    def row(sequences: Sequence[np.ndarray], index: int, rng: np.random.Generator) -> Scored:
        texts, label = pair(sequences, index, rng, swaps)
        ids = [special.begin, *texts[0], special.separator, *texts[1], special.separator]
        row = scored(
            np.asarray(ids, np.int32), len(ids), label, types=np.repeat([0, 1], [len(texts[0]) + 2, len(texts[1]) + 1])
        )
        noisy, weights = masked(row.tokens, knobs, special, rng)
        return row._replace(tokens=noisy, targets=row.tokens, weights=weights, segments=None)

    return Noise(name(config), room - 3, room, row, config.seed)


def two_languages(config: Config, words: Tokenizer) -> Noise:
    """``tlm``: hidden tokens of rows that hold a text and its translation (XLM: arXiv 1901.07291, section 3.3).

    Raises:
        ValueError: the tokenizer has no mask.
    """
    special, knobs, room = Special.of(words), config.noise, config.train.sequence_length

    def row(rows: Sequence[Batch], index: int, rng: np.random.Generator) -> Batch:
        plain = rows[index]
        length = int(plain.weights.sum())
        noisy, weights = masked(plain.tokens[:length], knobs, special, rng)
        tokens, counts = plain.tokens.copy(), np.zeros(room, np.float32)
        tokens[:length], counts[:length] = noisy, weights
        return plain._replace(tokens=tokens, weights=counts)

    return Noise(name(config), room, room, row, config.seed)


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
