"""Permutation language modelling (XLNet: arXiv 1906.08237, sections 2.2 and 2.3): tokens are predicted in an order.

Only the last tokens of the order are predicted, ``config.noise.rate`` of the row (1/K; the paper has K = 6 and 7). As
in the authors' code, those before them have no order among themselves: they all see each other.
"""

from collections.abc import Sequence

import numpy as np

from scaling.config.schema import Config
from scaling.data.batch import Batch, restarted
from scaling.data.noise.row import Noise, special_ids
from scaling.data.tokenizer_base import Tokenizer


def ranks(ids: np.ndarray, special: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """The place of each token in the order: 1, 2, ... of those that are predicted, and 0 of all before them.

    Args:
        ids: int32 [T].
        special: ids that are never predicted.
        rate: of the tokens that are no special ones so many are predicted, rounded, and at least one.
        rng: what is drawn: each order of the tokens is as likely as any other.
    """
    ordinary = np.flatnonzero(~np.isin(ids, special))
    count = min(len(ordinary), max(1, round(rate * len(ordinary))))
    found = np.zeros(len(ids), np.int32)
    found[rng.permutation(ordinary)[len(ordinary) - count :]] = np.arange(1, count + 1)
    return found


def permutation(config: Config, words: Tokenizer) -> Noise:
    """Rows of the stream with an order; attention stays inside documents with ``config.model.document_mask``."""
    special, room, rate = special_ids(words), config.train.sequence_length, config.noise.rate

    def row(sequences: Sequence[np.ndarray], index: int, rng: np.random.Generator) -> Batch:
        ids = sequences[index][:-1]
        order = ranks(ids, special, rate, rng)
        batch = Batch(ids, ids, (order > 0).astype(np.float32), order=order)
        if not config.model.document_mask:
            return batch
        segments = np.cumsum(ids == words.eot, dtype=np.int32)
        return batch._replace(positions=restarted(segments), segments=segments)

    return Noise(f"permutation rate={rate}", room, room, row, config.seed)
