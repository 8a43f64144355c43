"""Words of a text and grams of n words, and a fast search for the grams of items in a document.

Words are separated by white space, in lower case and without punctuation. In scripts without spaces between words each
character is a word.
"""

import dataclasses
import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

_PUNCTUATION = re.compile(r"[^\w\s]|_")
_VARIATION = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")  # variation selectors: they choose between glyphs
_SCRIPTS = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Tibetan; Burmese; Khmer
    "\u3005-\u3007\u3040-\u312f\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese, Japanese
)
_UNSPACED = re.compile(f"[{_SCRIPTS}]")
_WORD = re.compile(rf"[{_SCRIPTS}]|[^\s{_SCRIPTS}]+")
_CHUNK = re.compile(r"\S+")
_JOINING_JAMO = re.compile("[\u1161-\u1175\u11a8-\u11c2]")  # they make one syllable with the letter before them
_REST = np.uint64(64 - 24)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no bits are lost


def words_of(text: str) -> list[str]:
    """Words in lower case and without punctuation; in scripts without spaces between words each character is one.

    Forms that Unicode calls compatible are equal (NFKC): composed and decomposed letters, full and half width. Marks
    on letters, such as the vowels of Hindi, belong to the word.
    """
    if text.isascii():
        return _PUNCTUATION.sub("", text.lower()).split()
    text = _plain(text)
    return _WORD.findall(text) if _UNSPACED.search(text) else text.split()


def _plain(text: str) -> str:
    # Punctuation is removed first: NFKC would turn an acute accent that is used as an apostrophe into a space and a
    # mark.
    return unicodedata.normalize("NFKC", _PUNCTUATION.sub(_mark, text)).lower()


def _mark(found: re.Match[str]) -> str:
    """Keeps a mark on a letter, which Python's regular expressions do not count as part of a word."""
    kept = unicodedata.category(found[0]) in ("Mn", "Mc") and not _VARIATION.match(found[0])
    return found[0] if kept else ""


def spans_of(text: str) -> list[tuple[int, int]]:
    """Where the words of ``words_of(text)`` stand in the text itself: (first character, character after the last).

    The span of a word includes the punctuation that touches it, if white space is all that separates it from others.
    """
    spans = []
    for chunk in _CHUNK.finditer(text):  # no form of Unicode joins what white space separates
        count = len(words_of(chunk[0]))
        if count == 1:
            spans.append(chunk.span())
        elif count:
            spans += [(chunk.start() + start, chunk.start() + stop) for start, stop in _inside(chunk[0])]
    return spans


def _inside(chunk: str) -> Iterator[tuple[int, int]]:
    """As ``spans_of``, for a text without white space that has several words."""
    begins, ends = [], []  # of the group of characters that each character of the plain text comes from
    for places in _groups(chunk):
        length = len(_plain("".join(chunk[place] for place in places)))
        begins += [places[0]] * length
        ends += [places[-1] + 1] * length
    plain = _plain(chunk)
    assert len(plain) == len(begins), chunk
    found = _WORD if _UNSPACED.search(plain) else _CHUNK
    for word in found.finditer(plain):
        yield begins[word.start()], ends[word.end() - 1]


def _groups(text: str) -> Iterator[list[int]]:
    """Places of the characters that are no punctuation, in groups whose Unicode forms, joined, are that of the whole.

    A group begins at a character that starts a letter and never joins the one before it (UAX 15, stable code points).
    """
    group: list[int] = []
    for place, character in enumerate(text):
        if not _PUNCTUATION.sub(_mark, character):
            continue
        first = unicodedata.normalize("NFKD", character)[0]
        joins = unicodedata.category(first)[0] == "M" or unicodedata.combining(first) or _JOINING_JAMO.match(first)
        if group and not joins:
            yield group
            group = []
        group.append(place)
    if group:
        yield group


def numbered(words: Sequence[str], numbers: Mapping[str, int]) -> np.ndarray:
    """The numbers of words, uint64 [len(words)]; 0 for a word without one."""
    return np.fromiter((numbers.get(word, 0) for word in words), np.uint64, len(words))


@dataclasses.dataclass(frozen=True)
class Grams:
    """All different grams of n words of some items, with their owners (items, or tasks), as arrays.

    Attributes:
        rows: uint32 [G, n], the numbers of the words of each gram, which begin at 1.
        hashes: uint64 [G], ascending.
        first: int64 [G + 1]; the owners of gram g are ``owners[first[g] : first[g + 1]]``.
        owners: int64, their numbers.
    """

    rows: np.ndarray
    hashes: np.ndarray
    first: np.ndarray
    owners: np.ndarray

    @classmethod
    def of(cls, items: Iterable[tuple[int, np.ndarray]], n: int) -> "Grams":
        """The grams of items.

        Args:
            items: (number of the owner, numbers of the words of the item).
            n: words in a gram; an item with fewer has none.
        """
        owned = [(owner, np.lib.stride_tricks.sliding_window_view(ids, n)) for owner, ids in items if len(ids) >= n]
        rows = np.concatenate([np.empty((0, n), np.uint32), *(rows for _, rows in owned)]).astype(np.uint32)
        owners = np.repeat([owner for owner, _ in owned], [len(rows) for _, rows in owned]).astype(np.int64)
        hashes = _rolling(rows.astype(np.uint64).T, n)[0]
        order = np.lexsort((owners, hashes))
        rows, owners, hashes = rows[order], owners[order], hashes[order]
        other = np.append(True, hashes[1:] != hashes[:-1])[: len(hashes)]  # differs from the one before it
        assert (rows[1:] == rows[:-1])[~other[1:]].all(), "two grams of items have the same hash"
        kept = other | np.append(True, owners[1:] != owners[:-1])[: len(hashes)]
        first = np.append(np.flatnonzero(other[kept]), kept.sum())
        return cls(rows[other], hashes[other], first, owners[kept])

    @functools.cached_property
    def _begins(self) -> np.ndarray:
        """Whether any hash begins with these 24 bits: nearly all words are left out by one look into this."""
        begins = np.zeros(1 << 24, bool)
        begins[self.hashes >> _REST] = True
        return begins

    def owners_of(self, gram: int) -> np.ndarray:
        """The numbers of the owners of a gram."""
        return self.owners[self.first[gram] : self.first[gram + 1]]

    def find(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The grams that are in a document.

        Args:
            ids: uint64, the numbers of its words, 0 for those that no item has.

        Returns:
            For each occurrence the number of its first word in the document, and the number of the gram.
        """
        n = self.rows.shape[1]
        if len(ids) < n or not len(self.rows):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        rolled = _rolling(ids, n)
        starts = np.flatnonzero(self._begins[rolled >> _REST])
        places = np.minimum(np.searchsorted(self.hashes, rolled[starts]), len(self.hashes) - 1)
        equal = self.hashes[places] == rolled[starts]
        starts, found = starts[equal], places[equal]
        same = (np.lib.stride_tricks.sliding_window_view(ids, n)[starts] == self.rows[found]).all(axis=1)
        return starts[same], found[same]


def _rolling(ids: np.ndarray, n: int) -> np.ndarray:
    """Hash of each window of n ids, modulo 2**64: [len(ids) - n + 1, ...]."""
    count = len(ids) - n + 1
    total = np.zeros((count, *ids.shape[1:]), np.uint64)
    for offset in range(n):
        total = total * _MULTIPLIER + ids[offset : offset + count]
    return total
