"""Prefix language modelling: a text is cut in two, and its rest is predicted from its beginning.

T5 compares it with other objectives (arXiv 1910.10683, section 3.3.1). Nothing is hidden in the text.
"""

from collections.abc import Sequence

import numpy as np

from scaling.config.refusal import refused
from scaling.config.schema import Config
from scaling.data.batch import Batch, of_sequences
from scaling.data.noise.row import Noise, prefix_order, sequence_to_sequence
from scaling.data.tokenizer_base import Tokenizer


def prefix(config: Config, words: Tokenizer) -> Noise:
    """Rows of a text that is cut in two at a place that is drawn, each place as likely as any other.

    With an encoder, source and target are rows of their own and have an end each. The text is as long as the shorter
    one of the two, so each part fits, however it is cut. A decoder alone reads both parts in one row, without an end.

    Raises:
        ValueError: a text is so short that it cannot be cut.
    """
    room = config.train.sequence_length
    if not config.model.encoder_layers:
        return Noise("prefix alone", room, room, _alone, config.seed)
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


def _alone(sequences: Sequence[np.ndarray], index: int, rng: np.random.Generator) -> Batch:
    whole = of_sequences(sequences[index])
    room = len(whole.tokens)
    place = int(rng.integers(1, room + 1))  # of the first token that is predicted, in the text
    weights = (np.arange(room) >= place - 1).astype(np.float32)
    return whole._replace(weights=weights, order=prefix_order(place, room))
