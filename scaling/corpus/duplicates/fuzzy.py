"""Fuzzy deduplication: of documents with nearly the same words one is kept, in all data sets together.

MinHash with locality-sensitive hashing finds candidates, their Jaccard similarity is computed, and documents that are
connected by similar pairs are one group, of which the best is kept. The steps, each a function and its inputs:

1. ``sketch``, of a part: words, signatures, hashes of the bands, the rank of each document.
2. ``similar.buckets``, of a range of band hashes: documents that agree in a band.
3. ``similar.sets``, of a part: shingles of these documents.
4. ``similar.verify``, of a range of band hashes: pairs whose similarity is at least the threshold.
5. ``choose``, once: connected groups of documents, and which of each is kept. Only pairs of keys are in memory.
6. ``duplicates.drop``, of a part: writes it without its duplicates.

Presets:

- ``modern``: 5-grams of words, 14 bands of 8 hashes, threshold 0.8. N-grams and bands are FineWeb's (arXiv 2406.17557).
  Half of the pairs of similarity 0.68 are candidates, and 0.92 of those of 0.8.
- ``gpt3``: 10 hashes over sets of single words. GPT-3 (arXiv 2005.14165, Appendix A) deduplicated with "Spark's
  MinHashLSH implementation with 10 hashes, using the same features as were used for classification", which are hashed
  single words; the threshold was not published. Here they are 2 bands of 5, so half of the pairs of similarity 0.78
  are candidates, 0.55 of those of 0.8 and 0.83 of those of 0.9, and the threshold is 0.8. Spark's own join makes a pair
  a candidate if one hash of the 10 agrees (``bands=10, rows=1``: half of the pairs of similarity 0.07), and then
  compares the sets. That finds every pair, and compares nearly all pairs of texts of one language.

A document without a word is left alone. One with fewer words than the n-gram has is a duplicate only of a document of
the same words.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scaling.config.knob import knob
from scaling.corpus import documents
from scaling.corpus.duplicates import shared as dup
from scaling.corpus.duplicates import shingles, similar

# (ngram, bands, rows, threshold)
PRESETS = {"modern": (5, 14, 8, 0.8), "gpt3": (1, 2, 5, 0.8)}
KEEP = ("quality", "longest", "first")


@dataclasses.dataclass(frozen=True)
class Fuzzy:
    preset: str = knob("modern", "", '"modern" or "gpt3": what the next four knobs are where they are 0')
    ngram: int = knob(0, "words", "length of the n-grams that are compared; 0 = the preset's")
    bands: int = knob(0, "", "documents that agree in one band are compared; 0 = the preset's")
    rows: int = knob(0, "", "MinHash values of a band; 0 = the preset's")
    threshold: float = knob(0.0, "", "Jaccard similarity from which on documents are duplicates; 0 = the preset's")
    seed: int = knob(1, "", "of the hash functions")
    keep: str = knob("quality", "", 'which of a data set: best "quality" (else longest), "longest" or "first"')
    order: tuple[str, ...] = knob((), "", "data sets whose copy is kept first, in order; then those not named")


def resolved(knobs: Fuzzy) -> Fuzzy:
    """The knobs with the values of the preset.

    Raises:
        ValueError: a value is out of range.
    """
    if knobs.preset not in PRESETS:
        raise ValueError(f"fuzzy.preset={knobs.preset!r} is none of {', '.join(PRESETS)}")
    if knobs.keep not in KEEP:
        raise ValueError(f"fuzzy.keep={knobs.keep!r} is none of {', '.join(KEEP)}")
    for name in ("ngram", "bands", "rows", "seed"):
        if getattr(knobs, name) < 0:
            raise ValueError(f"fuzzy.{name}={getattr(knobs, name)} is below 0")
    if not 0 <= knobs.threshold <= 1:
        raise ValueError(f"fuzzy.threshold={knobs.threshold} is not between 0 and 1")
    ngram, bands, rows, threshold = PRESETS[knobs.preset]
    return dataclasses.replace(
        knobs,
        ngram=knobs.ngram or ngram,
        bands=knobs.bands or bands,
        rows=knobs.rows or rows,
        threshold=knobs.threshold or threshold,
    )


def steps(found: Mapping[str, Sequence[Path]], folder: Path, knobs: Fuzzy) -> list[dup.Step]:
    """What is to be done, in order. The step "drop" writes the parts; its results are tallies.

    Args:
        found: data set -> its parts, in their order.
        folder: of the stage: parts are written into ``DATASET/``, files of the steps into ``work/``. These have
            700 bytes a document with the preset ``modern``, and 8 bytes a word of the documents that are compared.
        knobs: of the stage.

    Raises:
        ValueError: a knob is out of range, or ``knobs.order`` names something else than data sets.
    """
    knobs = resolved(knobs)
    corpus, parts = dup.find(found, folder, knobs.order)
    work = corpus.work
    count = 1 + corpus.rows * (knobs.bands + 1) // dup.ENTRIES
    ranges = range(count)
    return [
        dup.Step(
            "sketch", sketch, [(work, part, knobs) for part in parts], ("signatures", "contents", "ranks", "bands")
        ),
        dup.Step("buckets", similar.buckets, [(corpus, n, count) for n in ranges], ("buckets", "equal", "mentions")),
        dup.Step("sets", similar.sets, [(corpus, part, count, knobs.ngram) for part in parts], ("sets", "places")),
        dup.Step("verify", similar.verify, [(corpus, n, knobs.bands, knobs.threshold) for n in ranges], ("edges",)),
        dup.Step("choose", choose, [(corpus, count)], ("losers",)),
        dup.Step("drop", dup.drop, [(corpus, part, 1, "near-duplicate") for part in parts]),
    ]


def sketch(work: Path, part: dup.Part, knobs: Fuzzy) -> dict[str, Any]:
    """Step 1, of a part. ``knobs`` is resolved.

    Files, with one row for each document: ``signatures`` (hashes), ``contents`` (a hash of all words), ``ranks`` (the
    higher the better). ``bands`` has entries (hash, key), sorted: those of the bands, and that of all words.

    Returns:
        Numbers of documents, and of those with fewer words than an n-gram.
    """
    table = documents.read(part.source)
    made, contents, counts = [], [], []
    for batch in shingles.batches(table["text"]):
        normal = shingles.words(batch)
        made.append(shingles.signatures(normal, knobs.bands * knobs.rows, knobs.ngram, knobs.seed))
        contents.append(shingles.text_hashes(normal))
        counts.append(shingles.word_counts(normal))
    signatures = np.concatenate([np.zeros((0, knobs.bands * knobs.rows), np.uint32), *made])
    words, content = (np.concatenate([np.zeros(0, np.uint64), *rows]).astype(np.uint64) for rows in (counts, contents))
    keys = dup.keys_of(part, np.arange(len(table)))
    long = words >= knobs.ngram
    hashes = shingles.band_hashes(signatures[long], knobs.bands).ravel()
    some = words > 0
    entries = np.stack(
        [np.concatenate([hashes, content[some]]), np.concatenate([np.repeat(keys[long], knobs.bands), keys[some]])]
    )
    dup.save(signatures, dup.path_of(work, "signatures", part.number))
    dup.save(content, dup.path_of(work, "contents", part.number))
    dup.save(_ranks(table, knobs.keep), dup.path_of(work, "ranks", part.number))
    dup.save_sorted(entries, dup.path_of(work, "bands", part.number))
    return {"documents": len(table), "short": int((~long).sum())}


def choose(corpus: dup.Corpus, partitions: int) -> dict[str, Any]:
    """Step 5: groups documents that are connected by similar pairs, and writes (key of a duplicate, key of the best).

    The best is of the data set of the highest priority, then of the highest rank, then the first in the corpus.

    Returns:
        Numbers of groups, of duplicates, and of documents in the biggest group.
    """
    import scipy.sparse as sp
    from scipy.sparse.csgraph import connected_components

    paths = [dup.path_of(corpus.work, kind, number) for kind in ("equal", "edges") for number in range(partitions)]
    edges = np.concatenate([np.load(path, allow_pickle=False) for path in paths], axis=1)
    if not edges.size:
        dup.save(np.zeros((2, 0), np.uint64), dup.path_of(corpus.work, "losers", 0))
        return {"groups": 0, "duplicates": 0, "biggest": 0}
    keys, ends = np.unique(edges, return_inverse=True)
    left, right = ends.reshape(edges.shape)
    graph = sp.coo_matrix((np.ones(len(left), np.uint8), (left, right)), shape=(len(keys), len(keys)))
    count, group = connected_components(graph, directed=False)
    ranks = dup.gather(corpus.work, "ranks", keys)
    order = np.lexsort((keys, -ranks, corpus.data_sets(keys), group))
    keys, group = keys[order], group[order]
    begin = dup.groups(group)
    best = np.repeat(begin[:-1], np.diff(begin))
    losers = np.flatnonzero(best != np.arange(len(keys)))
    dup.save_sorted(np.stack([keys[losers], keys[best[losers]]]), dup.path_of(corpus.work, "losers", 0))
    return {"groups": int(count), "duplicates": len(losers), "biggest": int(np.diff(begin).max())}


def _ranks(table: pa.Table, keep: str) -> np.ndarray:
    """What decides between duplicates of one data set: a number for each document."""
    if keep == "first":
        return np.zeros(len(table))
    if keep == "quality" and "quality" in table.column_names:
        return table["quality"].to_numpy().astype(np.float64)
    return pc.binary_length(table["text"]).to_numpy().astype(np.float64)
