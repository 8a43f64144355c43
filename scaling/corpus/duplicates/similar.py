"""Which documents share a bucket, and which of these pairs are similar: the middle steps of fuzzy deduplication.

A bucket is the set of documents that agree in a band. A pair in a bucket of up to ``SMALL`` documents is verified there
only if this is the first band in which it agrees, so it is verified once in the whole build, although most similar
pairs agree in several bands, and no table of all pairs is needed. Three things keep buckets cheap and lose no
connection:

- Documents of equal words are one document here: the first stands for the others, which are joined to it by a bucket
  of their own.
- A pair whose signatures agree too rarely is no candidate. The limit lies five standard deviations of the estimate
  below the threshold, so less than one similar pair in a million is lost.
- In a bucket of more than ``SMALL`` documents, each document is compared only with those that are not yet connected
  with it. That changes which edges are found, and not which documents are connected.

A bucket of more than ``LARGE`` documents of different words is cut into pieces of that length, each with the first
document of the bucket; its pairs in different pieces are not compared. Such buckets are counted.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scaling.corpus import documents
from scaling.corpus.duplicates import shared as dup
from scaling.corpus.duplicates import shingles

SMALL = 64  # documents of a bucket all of whose pairs are made at once
LARGE = 50_000
_PAIRS = 16_384  # whose signatures are compared at once

Edges = list[np.ndarray]  # each (2, n): keys of similar documents


def buckets(corpus: dup.Corpus, number: int, partitions: int) -> dict[str, Any]:
    """Step 2, of a range of band hashes: writes the buckets with several documents.

    Files: ``buckets`` with (hash, key), sorted; ``equal`` with (key, key of the first document of the same words);
    ``mentions`` with the keys in ``buckets``, sorted, as one row.

    Returns:
        Numbers of buckets, of documents in them, and of documents that equal another one.
    """
    hashes, keys = dup.partition_entries(corpus.work, "bands", corpus.parts, *dup.bounds(number, partitions))
    hashes, keys = _several(hashes, keys)
    contents = dup.gather(corpus.work, "contents", keys) if len(keys) else keys
    of_words = contents == hashes  # entries that say what the words are, and no band
    equal, first = _first_of_equal(hashes[of_words], keys[of_words])
    hashes, keys, contents = hashes[~of_words], keys[~of_words], contents[~of_words]
    order = np.lexsort((keys, contents, hashes))
    hashes, keys, contents = hashes[order], keys[order], contents[order]
    stands = dup.groups(hashes, contents)[:-1]
    hashes, keys = _several(hashes[stands], keys[stands])
    order = np.lexsort((keys, hashes))
    dup.save(np.stack([hashes[order], keys[order]]), dup.path_of(corpus.work, "buckets", number))
    dup.save(np.stack([equal, first]), dup.path_of(corpus.work, "equal", number))
    dup.save(np.unique(keys)[None], dup.path_of(corpus.work, "mentions", number))
    return {"buckets": len(dup.groups(hashes)) - 1, "documents": len(keys), "equal": len(equal)}


def sets(corpus: dup.Corpus, part: dup.Part, partitions: int, ngram: int) -> dict[str, Any]:
    """Step 3, of a part: writes the shingles of those documents that share a bucket with another one.

    Files: ``sets`` with the shingles of all, one document after another; ``places`` with (key, beginning in ``sets``,
    end in ``sets``), sorted.

    Returns:
        The number of documents.
    """
    low, high = (number << 32 for number in (part.number, part.number + 1))
    paths = (dup.path_of(corpus.work, "mentions", number) for number in range(partitions))
    keys = np.unique(np.concatenate([dup.between(path, low, high)[0] for path in paths]))
    found: list[np.ndarray] = []
    if len(keys):
        rows = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
        for batch in shingles.batches(documents.read(part.source)["text"].take(rows)):
            found += shingles.shingle_sets(shingles.words(batch), ngram)
    ends = np.cumsum([0, *map(len, found)]).astype(np.uint64)
    flat = np.concatenate(found) if found else np.zeros(0, np.uint64)
    dup.save(flat, dup.path_of(corpus.work, "sets", part.number))
    dup.save(np.stack([keys, ends[:-1], ends[1:]]), dup.path_of(corpus.work, "places", part.number))
    return {"documents": len(keys)}


def verify(corpus: dup.Corpus, number: int, bands: int, threshold: float) -> dict[str, Any]:
    """Step 4, of a range of band hashes: writes the pairs whose Jaccard similarity is at least the threshold.

    Returns:
        Numbers of pairs verified and similar, and of buckets that were cut.
    """
    check = _Check(corpus.work, bands, threshold)
    hashes, keys = np.load(dup.path_of(corpus.work, "buckets", number), allow_pickle=False)
    ends = dup.groups(hashes)
    sizes = np.diff(ends)
    edges: Edges = []
    for first, second, bucket in _small_pairs(hashes, keys, ends[:-1], sizes):
        edges.append(check.pairs(first, second, bucket))
    cut = 0
    for place in np.flatnonzero(sizes > SMALL):
        members = keys[ends[place] : ends[place + 1]]
        cut += len(members) > LARGE
        for begin in range(1, len(members), LARGE):
            piece = np.concatenate([members[:1], members[begin : begin + LARGE]])
            edges += check.bucket(piece)
    found = np.concatenate([np.zeros((2, 0), np.uint64), *edges], axis=1)
    dup.save(found, dup.path_of(corpus.work, "edges", number))
    return {"verified": check.verified, "similar": found.shape[1], "buckets cut": int(cut)}


class _Check:
    """Decides which pairs are similar."""

    def __init__(self, work: Path, bands: int, threshold: float):
        self._work, self._bands, self._threshold = work, bands, threshold
        self._file = functools.lru_cache(64)(
            lambda kind, part: np.load(dup.path_of(work, kind, part), mmap_mode="r", allow_pickle=False)
        )
        self._parents: dict[int, int] = {}  # of documents in big buckets: one that is connected with it
        self.verified = 0

    def pairs(self, first: np.ndarray, second: np.ndarray, bucket: np.ndarray) -> np.ndarray:
        """The similar ones of pairs (N,), each found in a bucket with that hash (N,): edges (2, n)."""
        keys, places = np.unique(np.concatenate([first, second]), return_inverse=True)
        made = dup.gather(self._work, "signatures", keys)
        one, other = made[places[: len(first)]], made[places[len(first) :]]
        agree = one == other
        here = np.flatnonzero(self._likely(agree))
        band = agree[here].reshape(len(here), self._bands, agree.shape[1] // self._bands).all(axis=2).argmax(axis=1)
        hashes = shingles.band_hashes(other[here], self._bands)[np.arange(len(here)), band]
        here = here[hashes == bucket[here]]
        return self._similar(first[here], second[here])

    def bucket(self, members: np.ndarray) -> Edges:
        """Edges that connect those similar documents of a bucket that earlier ones do not connect."""
        made = dup.gather(self._work, "signatures", members)
        group = np.array([self._root(key) for key in members.tolist()], np.uint64)
        edges = []
        for place in range(len(members) - 1):
            rest = place + 1 + np.flatnonzero(group[place + 1 :] != group[place])
            if not len(rest):
                break  # this one and all after it are connected
            here = rest[self._likely(made[place] == made[rest])]
            found = self._similar(np.full(len(here), members[place]), members[here])
            if found.shape[1]:
                joined = np.unique(group[np.searchsorted(members, found[1])])
                self._parents.update((root, int(group[place])) for root in joined.tolist())
                group[np.isin(group, joined)] = group[place]
                edges.append(found)
        return edges

    def _root(self, key: int) -> int:
        """The document that stands for all that are connected with one."""
        while (parent := self._parents.get(key, key)) != key:
            self._parents[key] = self._parents.get(parent, parent)
            key = parent
        return key

    def _likely(self, agree: np.ndarray) -> np.ndarray:
        """Whether pairs may be similar, by where their signatures agree, (N, hashes): (N,)."""
        deviation = np.sqrt(self._threshold * (1 - self._threshold) / agree.shape[1])
        return agree.mean(axis=1) >= self._threshold - 5 * deviation

    def _similar(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        self.verified += len(first)
        order = np.lexsort((second, first))
        kept = [at for at in order if self._jaccard(int(first[at]), int(second[at])) >= self._threshold]
        return np.stack([first[kept], second[kept]])

    def _jaccard(self, first: int, second: int) -> float:
        return shingles.jaccard(self._set(first), self._set(second))

    def _set(self, key: int) -> np.ndarray:
        keys, begin, end = self._file("places", key >> 32)
        place = np.searchsorted(keys, np.uint64(key))
        return self._file("sets", key >> 32)[int(begin[place]) : int(end[place])]


def _several(hashes: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of entries sorted by hash those whose hash another one has, too."""
    sizes = np.diff(dup.groups(hashes))
    stay = np.repeat(sizes > 1, sizes)
    return hashes[stay], keys[stay]


def _first_of_equal(hashes: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of entries sorted by hash, then key, those that are not the first with their hash, and the first for each."""
    begin = dup.groups(hashes)
    first = np.repeat(begin[:-1], np.diff(begin))
    others = np.flatnonzero(first != np.arange(len(keys)))
    return keys[others], keys[first[others]]


def _small_pairs(
    hashes: np.ndarray, keys: np.ndarray, begin: np.ndarray, sizes: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """All pairs of each bucket of at most ``SMALL`` documents, about ``_PAIRS`` at a time: two keys, and the hash."""
    for size in range(2, SMALL + 1):
        starts = begin[sizes == size]
        left, right = np.triu_indices(size, 1)
        step = max(1, _PAIRS // len(left))
        for place in range(0, len(starts), step):
            some = starts[place : place + step, None]
            yield keys[some + left].ravel(), keys[some + right].ravel(), hashes[some + 0 * left].ravel()
