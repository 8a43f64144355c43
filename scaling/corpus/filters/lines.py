"""The lines, paragraphs and sentences of many documents as arrays, and what repeats among them."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# What ends a sentence; marks of scripts without spaces need no space after them.
SENTENCE_END = r"""[.!?]["'”’»)\]]*(?:\s|$)|[。！？｡۔।॥؟።]"""
_SENTENCE = r"""([.!?]["'”’»)\]]*\s+|[。！？｡۔।॥؟።]\s*|\n\s*)"""
_MARK = "\x1e"  # the record separator of ASCII


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The pieces of n documents, one after another.

    Attributes:
        documents: int64 [pieces], the document of each.
        texts: of the pieces.
    """

    documents: np.ndarray
    texts: pa.LargeStringArray

    def where(self, mask: np.ndarray) -> "Pieces":
        """Those of the mask [pieces]."""
        return Pieces(self.documents[mask], self.texts.filter(pa.array(mask)))

    def ids(self) -> np.ndarray:
        """int64 [pieces]; equal texts have equal numbers."""
        return self.texts.dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)

    def joined(self, count: int, between: str) -> pa.LargeStringArray:
        """The texts of ``count`` documents, joined again."""
        starts = np.searchsorted(self.documents, np.arange(count + 1))
        lists = pa.ListArray.from_arrays(starts.astype(np.int32), self.texts)
        return pc.binary_join(lists, pa.scalar(between, pa.large_string()))


def lines(texts: pa.LargeStringArray) -> Pieces:
    """All lines, also empty ones, without white space at their ends."""
    found = _pieces(pc.split_pattern(texts, "\n"))
    return Pieces(found.documents, pc.utf8_trim_whitespace(found.texts))


def sentences(texts: pa.LargeStringArray) -> Pieces:
    """Pieces that end with a mark and white space, or with a line.

    A text is all its pieces in a row, except for the control character ``_MARK``, which a text may lose.
    """
    return _pieces(pc.split_pattern(pc.replace_substring_regex(texts, _SENTENCE, rf"\1{_MARK}"), _MARK))


def paragraphs(found: Pieces) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paragraphs, which are lines between empty ones: document, hash of the text, characters, int64 [paragraphs].

    Args:
        found: of ``lines``.
    """
    lengths = pc.utf8_length(found.texts).to_numpy(zero_copy_only=False)
    full = lengths > 0
    new = full & ~(np.concatenate([[False], full[:-1]]) & (np.diff(found.documents, prepend=-1) == 0))
    if not new.any():
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    starts = np.flatnonzero(new)
    number = np.cumsum(new) - 1
    place = np.arange(len(full)) - starts[np.maximum(number, 0)]
    hashes = np.where(full, _mixed(_mixed(found.ids()) + place.astype(np.uint64)), np.uint64(0))
    return (
        found.documents[starts],
        np.add.reduceat(hashes, starts).astype(np.int64),
        np.add.reduceat(lengths, starts).astype(np.int64),
    )


def repeated(documents: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Which pieces occurred before in their document, bool [pieces].

    Args:
        documents: of the pieces, ascending.
        ids: int64; equal pieces have equal numbers.
    """
    order = np.lexsort((ids, documents))
    same = (np.diff(documents[order]) == 0) & (np.diff(ids[order]) == 0)
    found = np.zeros(len(ids), bool)
    found[order[1:]] = same
    return found


def repeated_spans(documents: np.ndarray, ids: np.ndarray, length: int) -> np.ndarray:
    """Which pieces lie in a span of ``length`` pieces that occurred before in their document, bool [pieces]."""
    if len(ids) < length:
        return np.zeros(len(ids), bool)
    spans = len(ids) - length + 1
    inside = documents[:spans] == documents[length - 1 :]
    keys = np.zeros(spans, np.uint64)
    for place in range(length):
        keys = _mixed(keys + _mixed(ids[place : spans + place]))
    again = np.zeros(spans, bool)
    again[inside] = repeated(documents[:spans][inside], keys[inside].astype(np.int64))
    return covered(np.flatnonzero(again), length, len(ids))


def covered(starts: np.ndarray, length: int, count: int) -> np.ndarray:
    """Which of ``count`` places lie in a span of ``length`` places from one of the starts, bool [count]."""
    changes = np.zeros(count + 1, np.int64)
    changes[starts] += 1
    np.subtract.at(changes, starts + length, 1)
    return np.cumsum(changes[:-1]) > 0


def _pieces(lists: pa.ListArray) -> Pieces:
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    return Pieces(np.repeat(np.arange(len(lists)), lengths), lists.flatten())


def _mixed(values: np.ndarray) -> np.ndarray:
    """A hash of 64 bits of each (the finaliser of SplitMix64)."""
    x = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
