"""Span corruption (T5: arXiv 1910.10683, section 3.1.4): spans become sentinels, and the target has the spans.

Lengths and draws are those of T5's released code (``random_spans_helper`` and ``random_spans_noise_mask`` of
``t5.data.preprocessors``), which end the source and the target with one end of text each.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scaling.config.refusal import refused
from scaling.config.schema import Config
from scaling.config.schema import Noise as Knobs
from scaling.data.batch import Batch
from scaling.data.noise.row import Noise, sequence_to_sequence, special_ids
from scaling.data.tokenizer_base import Tokenizer

_TRIES = 64  # draws until no span has the end of a text in it


class Lengths(NamedTuple):
    """Tokens of the text that become a row, those of them that are hidden, and in how many spans."""

    tokens: int
    hidden: int
    spans: int

    @classmethod
    def of(cls, tokens: int, knobs: Knobs) -> "Lengths":
        """Of so many tokens ``knobs.rate`` are hidden in spans of ``knobs.span``; both numbers are rounded."""
        hidden = round(tokens * knobs.rate)
        return cls(tokens, hidden, round(hidden / knobs.span))

    @property
    def source(self) -> int:
        """Tokens of the source with a sentinel for each span, and an end."""
        return self.tokens - self.hidden + self.spans + 1

    @property
    def target(self) -> int:
        """Tokens of the target with a sentinel before each span, and an end."""
        return self.hidden + self.spans + 1


def lengths(source_length: int, knobs: Knobs) -> Lengths:
    """The longest text whose source fits: 568 tokens of T5's become 512 with a target of 114.

    Args:
        source_length: S.
        knobs: ``rate`` and ``span``.

    Raises:
        ValueError: none fits, no span is hidden, or spans have no text between them.
    """
    found = Lengths.of(1, knobs)
    while (longer := Lengths.of(found.tokens + 1, knobs)).source <= source_length:
        found = longer
        if found.hidden == found.tokens:
            break
    if knobs.rate == 0.5 and found.target > found.source:  # as T5's code, which prefers equal lengths
        found = Lengths.of(found.tokens - 1, knobs)
    if found.source > source_length or not 1 <= found.spans <= min(found.hidden, found.tokens - found.hidden):
        right = (
            f"hides {found.hidden} of {found.tokens} tokens in {found.spans} spans, for a source of {source_length}; "
            "there must be a span, and each must have a token and text before it"
        )
        raise refused("noise.rate", knobs.rate, right)
    return found


def random_segmentation(items: int, segments: int, rng: np.random.Generator) -> np.ndarray:
    """Lengths of so many segments, each at least 1, that items are cut into; all cuts are equally likely, int [n]."""
    cuts = np.sort(rng.choice(items - 1, segments - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [items]]))


def hidden_spans(special: np.ndarray, found: Lengths, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Where the spans begin and end: text and spans take turns, text is first, and a span is last, as in T5's code.

    Special tokens count as text that stays. Where a draw puts one into a span, another draw is made, so all places
    without one are equally likely. If no draw succeeds, because documents are very short, the spans that have
    one stay as they are.

    Args:
        special: whether each token is a special one, bool [tokens].
        found: see there.
        rng: what is drawn.

    Returns:
        Starts and ends, int [spans] each, both empty if all tokens are special.
    """
    ordinary = np.flatnonzero(~special)
    shown = len(ordinary) - found.hidden
    if shown < found.spans:
        return ordinary[:0], ordinary[:0]
    for _ in range(_TRIES):
        kept, hidden = (random_segmentation(count, found.spans, rng) for count in (shown, found.hidden))
        ends = np.cumsum(kept + hidden)
        starts, ends = ordinary[ends - hidden], ordinary[ends - 1] + 1
        whole = ends - starts == hidden
        if whole.all():
            break
    return starts[whole], ends[whole]


def corrupted(
    ids: np.ndarray, starts: np.ndarray, ends: np.ndarray, sentinels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The text with a sentinel in the place of each span, and the spans with that sentinel before each.

    Args:
        ids: int32 [tokens].
        starts: of the spans, in order.
        ends: of the spans.
        sentinels: ids, the first of which is that of the first span.

    Returns:
        int32 each, without ends.
    """
    source, target, done = [], [], 0
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        sentinel = sentinels[number : number + 1]
        source += [ids[done:start], sentinel]
        target += [sentinel, ids[start:end]]
        done = end
    return np.concatenate([*source, ids[done:]]), np.concatenate([*target, ids[:0]])


def _fitting(tokens: int, starts: np.ndarray, ends: np.ndarray, room: int) -> int:
    """Tokens of the text, from its first, whose source fits; all of them unless spans could not be hidden."""
    places = np.ones(tokens, int)
    for start, end in zip(starts, ends, strict=True):
        places[start + 1 : end] = 0
    return int((np.cumsum(places) <= room).sum())


def span_corruption(config: Config, words: Tokenizer) -> Noise:
    """Rows of ``config.data.source_length`` tokens of source, and of the target that belongs to them.

    Raises:
        ValueError: another ``config.train.sequence_length`` than the target's, no sentinels, or too few.
    """
    room = config.train.sequence_length
    source_room = config.data.source_length or room
    found, knobs = lengths(source_room, config.noise), config.noise
    if found.target != room:
        right = (
            f"must be {found.target}, the target of a source of {source_room} tokens with config.noise.rate="
            f"{knobs.rate} and config.noise.span={knobs.span}"
        )
        if not config.data.source_length:
            right += "; config.data.source_length is not set, and is taken to be as long"
        raise refused("train.sequence_length", room, right)
    sentinels, special = words.sentinels, special_ids(words)
    if found.spans > len(sentinels):
        right = f"makes rows of {found.spans} spans, and the tokenizer {words.name!r} has {len(sentinels)} sentinels"
        raise refused("data.source_length", source_room, right)
    end = np.array([words.eot], np.int32)

    def row(sequences: Sequence[np.ndarray], index: int, rng: np.random.Generator) -> Batch:
        ids = sequences[index][:-1]
        starts, ends = hidden_spans(np.isin(ids, special), found, rng)
        fits = _fitting(len(ids), starts, ends, source_room - 1)
        inside = ends <= fits
        source, target = corrupted(ids[:fits], starts[inside], ends[inside], sentinels)
        source, target = np.concatenate([source, end]), np.concatenate([target, end])
        return sequence_to_sequence(source, target, words.decoder_start, source_room, room)

    name = f"span_corruption {source_room} rate={knobs.rate} span={knobs.span}"
    return Noise(name, found.tokens, room, row, config.seed)
