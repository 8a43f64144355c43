"""What the rules of Gopher look at (Rae et al., arXiv 2112.11446, A.1.1 and table A1), for many documents at a time.

A word is what stands between white space, with its punctuation. In a document of a script without spaces (see
``words.unspaced``) each of the script's characters is a word. The characters of a document are those of its words.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scaling.corpus.filters.lines import covered, lines, paragraphs, repeated
from scaling.corpus.filters.words import Words

TOP = (2, 3, 4)  # lengths of n-grams of which the most frequent is looked at
DUPLICATE = (5, 6, 7, 8, 9, 10)  # lengths of n-grams of which all that occur twice are looked at
_BULLET = r"^(?:[•‣⁃◦∙●○■▪►]|[-*–]\s)"
_ELLIPSIS = r"(?:\.\.\.|…)$"


def of_words(texts: pa.LargeStringArray, words: Words, stop_words: Sequence[str]) -> dict[str, np.ndarray]:
    """Number of words, their mean length, symbols a word, the share with a letter, number of stop words; each [n].

    Args:
        texts: of the documents.
        words: of the same documents.
        stop_words: in lower case; different ones are counted, in any case of letters.
    """
    count = np.diff(words.starts)
    some = np.maximum(count, 1)
    lengths = _lengths(words)[words.ids]
    letters = pc.match_substring_regex(words.vocabulary, r"\p{L}").to_numpy(zero_copy_only=False)
    ellipses = np.add(*(pc.count_substring(texts, mark).to_numpy(zero_copy_only=False) for mark in ("...", "…")))
    known = pc.index_in(pc.utf8_lower(words.vocabulary), pa.array(stop_words, pa.large_string()))
    stop = pc.fill_null(known, -1).to_numpy(zero_copy_only=False)[words.ids]
    present = np.zeros((len(count), max(1, len(stop_words))), bool)
    present[words.documents[stop >= 0], stop[stop >= 0]] = True
    return {
        "words": count,
        "word length": words.totals(lengths) / some,
        "hash signs": pc.count_substring(texts, "#").to_numpy(zero_copy_only=False) / some,
        "ellipses": ellipses / some,
        "alphabetic": words.totals(letters[words.ids]) / some,
        "stop words": present.sum(1),
    }


def of_lines(texts: pa.LargeStringArray) -> dict[str, np.ndarray]:
    """Shares of lines: with a bullet first, an ellipsis last, repeated; of paragraphs that repeat; of their characters.

    Empty lines are no lines. A repetition is a line that occurred before in its document; so of two, one is counted.
    """
    n, found = len(texts), lines(texts)
    block, same, size = paragraphs(found)
    found = found.where(pc.not_equal(found.texts, "").to_numpy(zero_copy_only=False))
    line, lengths = found.documents, pc.utf8_length(found.texts).to_numpy(zero_copy_only=False)
    total, characters = _some(line, n), np.maximum(np.bincount(line, lengths, n), 1)
    again, block_again = repeated(line, found.ids()), repeated(block, same)
    starts, ends = (
        pc.match_substring_regex(found.texts, form).to_numpy(zero_copy_only=False) for form in (_BULLET, _ELLIPSIS)
    )
    return {
        "bullets": np.bincount(line, starts, n) / total,
        "line ellipses": np.bincount(line, ends, n) / total,
        "lines": np.bincount(line, again, n) / total,
        "paragraphs": np.bincount(block, block_again, n) / _some(block, n),
        "line characters": np.bincount(line, again * lengths, n) / characters,
        "paragraph characters": np.bincount(block, block_again * size, n) / characters,
    }


def of_ngrams(words: Words) -> dict[int, np.ndarray]:
    """Shares of characters [n], by the length of the n-grams.

    For lengths of ``TOP``: occurrences times characters of the n-gram that occurs most often, of those that occur at
    least twice; of several, the longest. For lengths of ``DUPLICATE``: characters in any n-gram that occurs twice, each
    once.

    An n-gram that occurs twice begins with one of n - 1 words that occurs twice. So few places are left of longer ones.
    """
    n, total = len(words.starts) - 1, len(words.ids)
    found = {length: np.zeros(n) for length in (*TOP, *DUPLICATE)}
    document, ids, size = words.documents, words.ids.astype(np.uint64), np.uint64(len(words.vocabulary))
    lengths = _lengths(words)
    before = np.concatenate([[0], np.cumsum(lengths[words.ids])])  # characters before each word
    characters = np.maximum(words.totals(lengths[words.ids]), 1)
    last = words.starts[1:][document]  # where the document of each word ends
    places = np.arange(total)
    keys = (
        document.astype(np.uint64) * size + ids
    )  # 64 bits hold those of two words in a slice; more wrap, as a hash does
    for length in range(2, max(DUPLICATE) + 1):
        inside = places + length <= last[places]
        places = places[inside]
        _, which, counts = np.unique(
            keys[inside] * size + ids[places + length - 1], return_inverse=True, return_counts=True
        )
        many = counts[which] > 1
        places, which = places[many], which[many]
        if not len(places):
            break
        keys = which.astype(np.uint64)
        if length in TOP:
            span = before[places + length] - before[places]
            top = np.zeros(n, np.int64)
            np.maximum.at(top, document[places], (counts[which] << 32) + span)
            found[length] = (top >> 32) * (top & 0xFFFFFFFF) / characters
        if length in DUPLICATE:
            inside = covered(places, length, total)
            found[length] = words.totals(lengths[words.ids] * inside) / characters
    return found


def _lengths(words: Words) -> np.ndarray:
    """Characters of each word of the vocabulary, int64 [V]."""
    return pc.utf8_length(words.vocabulary).to_numpy(zero_copy_only=False).astype(np.int64)


def _some(documents: np.ndarray, count: int) -> np.ndarray:
    return np.maximum(np.bincount(documents, minlength=count), 1)
