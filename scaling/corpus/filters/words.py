"""The words of many documents as arrays, for stages that count words."""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SLICE = 1 << 23  # bytes of text whose words are in memory at a time; they take about ten times as many


@dataclasses.dataclass(frozen=True)
class Words:
    """The words of n documents, one after another.

    Attributes:
        starts: int64 [n + 1]; those of document d are at starts[d] to starts[d + 1].
        ids: int32 [words], which word of the vocabulary each is.
        vocabulary: the different words [V].
    """

    starts: np.ndarray
    ids: np.ndarray
    vocabulary: pa.LargeStringArray

    @functools.cached_property
    def documents(self) -> np.ndarray:
        """int64 [words], the document of each word."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    def without(self, documents: np.ndarray) -> "Words":
        """The same documents, of which those of the mask [n] have no words."""
        counts = np.diff(self.starts)
        ids = self.ids[np.repeat(~documents, counts)]
        return Words(np.concatenate([[0], np.cumsum(counts * ~documents)]), ids, self.vocabulary)

    def totals(self, values: np.ndarray) -> np.ndarray:
        """Sums over the words of each document [n], of values of words [words]; words are added in their order."""
        return np.bincount(self.documents, values, minlength=len(self.starts) - 1)


def slices(texts: pa.ChunkedArray) -> Iterator[tuple[int, pa.LargeStringArray]]:
    """Cuts a column of texts into pieces of about ``SLICE`` bytes: the number of the first text, and the texts."""
    if not len(texts):
        return
    sizes = np.cumsum(pc.binary_length(texts).to_numpy())
    cuts = np.flatnonzero(np.diff(sizes // SLICE, prepend=0)) + 1
    first = 0
    for last in [*cuts.tolist(), len(texts)]:
        if last > first:
            yield first, texts.slice(first, last - first).cast(pa.large_string()).combine_chunks()
        first = last


def between_spaces(texts: pa.LargeStringArray) -> pa.ListArray:
    """The pieces between white space (as Unicode has it), for each text; a text without words has one empty piece.

    White space at the ends is cut first. Where the last text of an array ends with some, ``utf8_split_whitespace`` of
    Arrow (25, 26) reads the byte after the array's end, and by its random value it splits there or not.
    """
    return pc.utf8_split_whitespace(pc.utf8_trim_whitespace(texts))


def split(texts: pa.LargeStringArray) -> Words:
    """The words of texts: the pieces between white space."""
    lists = between_spaces(texts)
    encoded = lists.flatten().dictionary_encode()
    ids = encoded.indices.to_numpy(zero_copy_only=False)
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    vocabulary = encoded.dictionary
    empty = pc.index(vocabulary, "").as_py()  # the piece of a text without words
    if empty >= 0:
        present = ids != empty
        document = np.repeat(np.arange(len(lengths)), lengths)
        lengths = np.bincount(document[present], minlength=len(lengths))
        ids = ids[present]
    return Words(np.concatenate([[0], np.cumsum(lengths)]), ids, vocabulary)


# Scripts that are written without spaces between words.
UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"


def unspaced(texts: pa.LargeStringArray) -> np.ndarray:
    """Which texts are written without spaces, bool [n]: over half of their letters are of such scripts."""
    counts = pc.count_substring_regex(texts, UNSPACED).to_numpy(zero_copy_only=False)
    found, some = np.zeros(len(texts), bool), np.flatnonzero(counts)
    if len(some):
        letters = pc.count_substring_regex(texts.take(pa.array(some)), r"\p{L}").to_numpy(zero_copy_only=False)
        found[some] = counts[some] * 2 > letters
    return found


def spaced(texts: pa.LargeStringArray, which: np.ndarray) -> pa.LargeStringArray:
    """The texts, of which those of ``which`` [n] get spaces around each character of a script without spaces.

    Each of these characters is a word then, with the marks on it, as in the tokenization of BLEU for Chinese.
    """
    if not which.any():
        return texts
    mask = pa.array(which)
    return pc.replace_with_mask(
        texts, mask, pc.replace_substring_regex(texts.filter(mask), rf"({UNSPACED}\p{{M}}*)", r" \1 ")
    )
