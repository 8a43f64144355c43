"""What all noise shares: a row is a pure function of the sequence, its index and a seed.

So a sequence has other noise in each epoch, and the same on every mesh and after a restart. The ids of control tokens
and of the end of a text are never hidden, and never drawn.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from scaling.data.batch import Batch, Scored
from scaling.data.tokenizer_base import Tokenizer


def special_ids(words: Tokenizer) -> np.ndarray:
    """Sorted ids of all control tokens and of the end of a text, int32 [n]: no text of the user's has them."""
    return np.asarray(sorted({*words.controls.values(), words.eot}), np.int32)


@dataclasses.dataclass(frozen=True)
class Noise:
    """What an objective makes of sequences.

    Attributes:
        name: of the objective and its knobs.
        taken: tokens of the text in a row.
        room: T, the places of a row for which the model predicts a token.
        row: (sequences int32 [taken + 1], or rows without noise, index, what is drawn) to a row of arrays.
        seed: of all that is drawn.
    """

    name: str
    taken: int
    room: int
    row: Callable[[Sequence[Any], int, np.random.Generator], Batch | Scored]
    seed: int

    def __call__(self, sequences: Sequence[Any], index: int) -> Batch | Scored:
        """The row of an index."""
        return self.row(sequences, index, np.random.default_rng((self.seed, index)))


@dataclasses.dataclass(frozen=True)
class Noisy(Sequence[Batch | Scored]):
    """Rows made of sequences.

    Attributes:
        sequences: of tokens, int32 [taken + 1] each, or rows without noise.
        noise: what is made of them.
    """

    sequences: Sequence[Any]
    noise: Noise

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index):
        return self.noise(self.sequences, index)


def prefix_order(size: int, room: int) -> np.ndarray:
    """The order, int32 [room], of a row whose first tokens see each other and whose others see what is before them."""
    return np.maximum(np.arange(room, dtype=np.int32), size - 1)


def sequence_to_sequence(source: np.ndarray, target: np.ndarray, start: int, source_room: int, room: int) -> Batch:
    """The row of an encoder and a decoder, which reads the target behind a start token.

    Args:
        source: what the encoder reads, with its end, int32 [at most source_room].
        target: what is predicted, with its end, int32 [at most room].
        start: the first token that the decoder reads.
        source_room: S.
        room: T.

    Returns:
        Arrays [T], and of the source [S]; the rest is padding, which nothing sees and which has no weight.
    """
    assert 0 < len(source) <= source_room and 0 < len(target) <= room, (len(source), len(target))
    read, tokens, targets = np.zeros(source_room, np.int32), np.zeros(room, np.int32), np.zeros(room, np.int32)
    read[: len(source)] = source
    tokens[0], tokens[1 : len(target)], targets[: len(target)] = start, target[:-1], target
    weights = (np.arange(room) < len(target)).astype(np.float32)
    padding = (np.arange(source_room) >= len(source)).astype(np.int32)
    return Batch(tokens, targets, weights, source=read, source_segments=padding)
