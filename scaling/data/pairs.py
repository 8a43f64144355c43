"""Pairs of texts in JSON Lines as training data: a source and its target, or a text in two languages.

A pair is a row, which is never cut. Rows are in memory, and are shuffled anew each epoch by the seed of the run.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from scaling.config.schema import Config
from scaling.data import sources
from scaling.data.batch import Batch, restarted
from scaling.data.chat.dialogues import FaultyRecord, Skipped, usable
from scaling.data.noise.masked import two_languages
from scaling.data.noise.row import Noisy, prefix_order, sequence_to_sequence
from scaling.data.rows import Rows, split
from scaling.data.tokenizer_base import BEGIN, SEPARATOR, Tokenizer

log = logging.getLogger(__name__)

OBJECTIVES = ("pairs", "tlm", "translations")
_OPEN = 1000  # rows that may still take a pair


class Pair(NamedTuple):
    """The ids of a source and of its target, int32 [n] each, and where they stand, as ``FILE:LINE``."""

    source: np.ndarray
    target: np.ndarray
    where: str = ""


class Layout(NamedTuple):
    """How a pair becomes a row.

    Attributes:
        fault: what is wrong with a pair that does not fit, in words; "" = it fits.
        row: arrays [T], and of an encoder's source [S].
        places: that a pair takes of T, and of S (0 without an encoder).
    """

    fault: Callable[[Pair], str]
    row: Callable[[Pair], Batch]
    places: Callable[[Pair], tuple[int, int]] = lambda pair: (0, 0)

    def packed(self, pairs: Sequence[Pair]) -> Batch:
        """The row of several pairs that fit together; each is a segment with positions of its own."""
        return side_by_side([self.row(pair) for pair in pairs], [self.places(pair) for pair in pairs])


class Laid(Sequence[Batch]):
    """Rows that are made of their pairs when they are read: these need less memory."""

    def __init__(self, items: Sequence[Any], row: Callable[[Any], Batch]) -> None:
        self._items, self._row = items, row

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        return self._row(self._items[index])


def data(config: Config, words: Tokenizer) -> tuple[Rows, Sequence[Any]]:
    """Rows of ``config.data.train``, and those of ``config.data.validation`` or a held-out fraction.

    Raises:
        FileNotFoundError, ValueError: as ``read``; no pair fits a row; or the tokenizer lacks control tokens.
    """
    layout = layout_of(config, words)
    skipped = Skipped(refuses=config.data.bad_records == "error")

    def pairs(pattern: str) -> list[Pair]:
        found = list[Pair]()
        for pair in read(pattern, config, words, skipped):
            if fault := layout.fault(pair):
                skipped.skip(pair.where, fault)
            else:
                found.append(pair)
        if not found:
            raise ValueError(f"{pattern}: no pair in it fits a row")
        return found

    training, held_out = split(config.data, pairs)
    skipped.summary()
    tokens = sum(len(pair.source) + len(pair.target) for pair in training)
    log.info("%d pairs of %d tokens, and %d held out", len(training), tokens, len(held_out))
    if config.data.pack:
        rooms = config.train.sequence_length, config.data.source_length or config.train.sequence_length
        found, others = (
            [[pairs[i] for i in row] for row in together(map(layout.places, pairs), rooms)]
            for pairs in (training, held_out)
        )
        log.info("%d rows of %.1f pairs in the mean", len(found), len(training) / len(found))
        return Rows.of(Laid(found, layout.packed), config), Laid(others, layout.packed)
    noise = two_languages(config, words) if config.data.objective == "tlm" else None
    validation: Sequence[Any] = Laid(held_out, layout.row)
    if noise is not None:
        validation = Noisy(validation, noise)
    return Rows.of(Laid(training, layout.row), config, noise=noise), validation


def read(pattern: str, config: Config, words: Tokenizer, skipped: Skipped) -> Iterator[Pair]:
    """The pairs of JSON Lines files.

    Args:
        pattern: a path or glob.
        config: with the names of the two fields.
        words: tokenizer.
        skipped: where records go that lack a field or have no text in it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that cannot be read, or no pair in it.
    """
    keys = (config.data.source_key, config.data.target_key)

    def pair(record: dict[str, Any], where: str) -> Pair:
        texts = []
        for key, knob in zip(keys, ("source_key", "target_key"), strict=True):
            if key not in record:
                there = ", ".join(map(repr, record)) or "none"
                raise FaultyRecord(f"no field {key!r}; there are {there} (choose with config.data.{knob})")
            if not isinstance(record[key], str) or not record[key].strip():
                raise FaultyRecord(f"the field {key!r} has no text")
            texts.append(sources.text_of(record[key], key, where))
        source, target = words.encode_batch(texts)
        return Pair(source, target, where)

    return usable(pattern, skipped, "pair", pair)


def together(places: Iterable[tuple[int, int]], rooms: tuple[int, int]) -> list[list[int]]:
    """Which pairs share a row: each goes into the row, of the last ones, that it fills best; the largest are first.

    Args:
        places: that each pair takes in two ways.
        rooms: of a row in the same ways.

    Returns:
        Numbers of pairs, for each row.
    """
    sizes, room = np.array(list(places)).reshape(-1, 2), np.array(rooms)
    rows: list[list[int]] = []
    free = np.zeros((0, 2), int)  # of the last rows
    for i in np.argsort(-(sizes / room).max(1), kind="stable"):
        left = free - sizes[i]
        fits = np.flatnonzero((left >= 0).all(1))
        if len(fits):
            best = fits[(left[fits] / room).max(1).argmin()]
            rows[len(rows) - len(free) + best].append(int(i))
            free[best] = left[best]
        else:
            rows.append([int(i)])
            free = np.concatenate([free[-_OPEN + 1 :], [room - sizes[i]]])
    return rows


def side_by_side(rows: Sequence[Batch], places: Sequence[tuple[int, int]]) -> Batch:
    """The row that has the first places of each row, the target's and the source's; the rest is padding."""
    made: dict[str, np.ndarray] = {}
    for kind, fields in enumerate((("tokens", "targets", "weights", "order"), ("source",))):
        names = [name for name in fields if getattr(rows[0], name) is not None]
        if not names:
            continue
        likes = {name: getattr(rows[0], name) for name in names}
        room = len(likes[names[0]])
        segments, at = np.full(room, len(rows), np.int32), 0
        made |= {name: np.zeros_like(like) for name, like in likes.items()}
        for number, (row, sizes) in enumerate(zip(rows, places, strict=True)):
            size = sizes[kind]
            for name in names:
                made[name][at : at + size] = getattr(row, name)[:size]
            segments[at : at + size] = number
            at += size
        prefix = "source_" if kind else ""
        made |= {f"{prefix}segments": segments, f"{prefix}positions": restarted(segments)}
    return Batch(**made)


def layout_of(config: Config, words: Tokenizer) -> Layout:
    """The layout of ``config.data.objective``, for an encoder with a decoder or for one alone.

    Raises:
        ValueError: the tokenizer has no tokens that separate two texts.
    """
    if config.data.objective == "tlm":
        return _two_languages(config, words)
    if config.data.objective == "translations":
        return _apart(config, words)
    return _behind_an_encoder(config, words) if config.model.encoder_layers else _in_one_text(config, words)


def framed(ids: np.ndarray, words: Tokenizer) -> np.ndarray:
    """A text as an encoder reads it and a decoder predicts it: with the end of text behind it.

    Before it is what the tokenizer's own file puts before a text, as that of BART does.
    """
    return np.concatenate([words.template, ids, [words.eot]]).astype(np.int32)


def _behind_an_encoder(config: Config, words: Tokenizer) -> Layout:
    room = config.train.sequence_length
    source_room = config.data.source_length or room
    around = len(words.template) + 1

    def fault(pair: Pair) -> str:
        if len(pair.source) + around > source_room:
            return f"the source with its end does not fit config.data.source_length={source_room}"
        too_long = len(pair.target) + around > room
        return f"the target with its end does not fit config.train.sequence_length={room}" if too_long else ""

    def row(pair: Pair) -> Batch:
        source, target = framed(pair.source, words), framed(pair.target, words)
        return sequence_to_sequence(source, target, words.decoder_start, source_room, room)

    return Layout(fault, row, lambda pair: (len(pair.target) + around, len(pair.source) + around))


def _in_one_text(config: Config, words: Tokenizer) -> Layout:
    """For a decoder alone: start, source, separator, target, end. The target and its end count."""
    room, separator = config.train.sequence_length, words.special(SEPARATOR)

    def fault(pair: Pair) -> str:
        too_long = len(words.start) + len(pair.source) + 1 + len(pair.target) > room
        return f"source and target do not fit config.train.sequence_length={room}" if too_long else ""

    def row(pair: Pair) -> Batch:
        ids = np.concatenate([words.start, pair.source, [separator], pair.target, [words.eot]]).astype(np.int32)
        used = len(ids) - 1
        tokens, targets, weights = np.zeros(room, np.int32), np.zeros(room, np.int32), np.zeros(room, np.float32)
        tokens[:used], targets[:used] = ids[:-1], ids[1:]
        asks = used - len(pair.target) - 1  # the place that predicts the target's first token
        weights[asks:used] = 1
        return Batch(tokens, targets, weights, order=prefix_order(asks + 1, room) if config.model.prefix_lm else None)

    def places(pair: Pair) -> tuple[int, int]:
        return len(words.start) + len(pair.source) + 1 + len(pair.target), 0

    return Layout(fault, row, places)


def _two_languages(config: Config, words: Tokenizer) -> Layout:
    """For an encoder: each text behind a begin and before a separator, with positions of its own and a type.

    Weights are 1 at all tokens, of which the noise chooses. Padding is a segment of its own.
    """
    room, begin, separator = config.train.sequence_length, words.special(BEGIN), words.special(SEPARATOR)

    def fault(pair: Pair) -> str:
        too_long = len(pair.source) + len(pair.target) + 4 > room
        return f"the two texts do not fit config.train.sequence_length={room}" if too_long else ""

    def row(pair: Pair) -> Batch:
        texts = [np.concatenate([[begin], ids, [separator]]) for ids in pair[:2]]
        tokens, positions, types = (np.zeros(room, np.int32) for _ in range(3))
        first, used = len(texts[0]), len(texts[0]) + len(texts[1])
        tokens[:used] = np.concatenate(texts)
        positions[:first], positions[first:used] = np.arange(first), np.arange(used - first)
        types[first:used] = 1
        padding = (np.arange(room) >= used).astype(np.int32)
        return Batch(tokens, tokens, (1 - padding).astype(np.float32), positions, padding, types)

    return Layout(fault, row)


def _apart(config: Config, words: Tokenizer) -> Layout:
    """For an encoder that reads each text by itself, behind a begin and before a separator; the first token counts.

    Padding is a segment of its own.
    """
    room, begin, separator = config.train.sequence_length, words.special(BEGIN), words.special(SEPARATOR)
    source_room = config.data.source_length or room

    def places(pair: Pair) -> tuple[int, int]:
        return len(pair.target) + 2, len(pair.source) + 2

    def fault(pair: Pair) -> str:
        for text, taken, limit, knob in zip(
            ("target", "source"), places(pair), (room, source_room), ("train.sequence_length", "data.source_length"),
            strict=True,
        ):  # fmt: skip
            if taken > limit:
                return f"the {text} does not fit config.{knob}={limit}"
        return ""

    def one(ids: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
        tokens = np.zeros(limit, np.int32)
        tokens[: len(ids) + 2] = [begin, *ids, separator]
        return tokens, (np.arange(limit) >= len(ids) + 2).astype(np.int32)

    def row(pair: Pair) -> Batch:
        (tokens, padding), (source, around) = one(pair.target, room), one(pair.source, source_room)
        weights = (np.arange(room) == 0).astype(np.float32)
        return Batch(tokens, tokens, weights, None, padding, source=source, source_segments=around)

    return Layout(fault, row, places)
