"""Prefix language modelling behind an encoder: the source is the beginning of a text, and the target is its rest.

T5 compares it with other objectives (arXiv 1910.10683, section 3.3.1). Nothing is hidden in the text.
"""

from collections.abc import Sequence

import numpy as np

from scaling.config.refusal import refused
from scaling.config.schema import Config
from scaling.data.batch import Batch
from scaling.data.noise.row import Noise, sequence_to_sequence
from scaling.data.tokenizer_base import Tokenizer


def prefix(config: Config, words: Tokenizer) -> Noise:
    """Rows of a text that is cut in two at a place that is drawn, each place as likely as any other.

    The text is as long as the shorter one of source and target, so each part fits with its end, however it is cut.

    Raises:
        ValueError: one of them is so short that the text cannot be cut.
    """
    room = config.train.sequence_length
    source_room = config.data.source_length or room
    taken, end = min(source_room, room), np.array([words.eot], np.int32)
    if taken < 2:
        knob = "train.sequence_length" if room < 2 else "data.source_length"
        raise refused(knob, taken, "must be at least 2: a text is cut in two, and each part has a token")

    def row(sequences: Sequence[np.ndarray], index: int, rng: np.random.Generator) -> Batch:
        text = sequences[index][:-1]
        place = int(rng.integers(1, len(text)))
        source, target = (np.concatenate([part, end]) for part in (text[:place], text[place:]))
        return sequence_to_sequence(source, target, words.decoder_start, source_room, room)

    return Noise(f"prefix {source_room}", taken, room, row, config.seed)
