"""For tests of deduplication: parts from texts, seeded edits, and all pairs by an exhaustive computation."""

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from scaling.corpus import documents
from scaling.corpus.duplicates import shingles


def write_parts(folder: Path, texts: list[str], parts: int = 1, **more: list) -> None:
    """Writes a data set as parts; the id of a document is its number."""
    folder.mkdir(parents=True)
    number, rows = len(texts), -(-len(texts) // parts)
    columns = dict(
        id=[f"{folder.name}/{n}" for n in range(number)],
        text=texts,
        file=["a file"] * number,
        place=list(range(number)),
        url=[""] * number,
    )
    for part in range(parts):
        here = slice(part * rows, (part + 1) * rows)
        table = documents.table({name: values[here] for name, values in columns.items()})
        for name, values in more.items():
            table = documents.with_column(table, name, pa.array(values[here]))
        documents.write(table, folder / f"f000000-{part:05d}.parquet")


def read_ids(folder: Path) -> list[str]:
    """The ids of a data set's documents, in order."""
    return [i for path in sorted(folder.glob("*.parquet")) for i in documents.read(path)["id"].to_pylist()]


def edited(text: str, random_numbers: random.Random, similarity: float) -> str:
    """The text with words replaced, deleted and inserted, so that 5-grams have about that Jaccard similarity."""
    words = text.split()
    untouched = (2 * similarity / (1 + similarity)) ** (1 / 5)
    made = []
    for word in words:
        if random_numbers.random() < untouched:
            made.append(word)
            continue
        made += random_numbers.choice(
            [[f"x{random_numbers.randrange(10**6)}"], [], [word, random_numbers.choice(words)]]
        )
    return " ".join(made)


def all_similar(texts: list[str], ngram: int, threshold: float) -> dict[tuple[int, int], float]:
    """All pairs of texts with at least that Jaccard similarity, from the n-grams themselves, without any hashing."""
    numbers: dict[tuple[str, ...], int] = {}
    rows, columns = [], []
    for row, text in enumerate(shingles.words(pa.array(texts, pa.large_string())).to_pylist()):
        words = text.split()
        grams = {tuple(words[at : at + ngram]) for at in range(len(words) - ngram + 1)} or {tuple(words)} - {()}
        columns += [numbers.setdefault(gram, len(numbers)) for gram in grams]
        rows += [row] * len(grams)
    shape = (len(texts), len(numbers))
    sets = sp.csr_matrix((np.ones(len(rows), np.int32), (rows, columns)), shape=shape)
    sizes = np.asarray(sets.sum(axis=1)).ravel()
    shared = sets[:, np.flatnonzero(np.asarray(sets.sum(axis=0)).ravel() > 1)]
    common = sp.triu(shared @ shared.T, 1).tocoo()
    similarity = common.data / (sizes[common.row] + sizes[common.col] - common.data)
    found = np.flatnonzero(similarity >= threshold)
    return {(int(common.row[n]), int(common.col[n])): float(similarity[n]) for n in found}


def found_pairs(work: Path, rows_of_parts: list[int]) -> set[tuple[int, int]]:
    """The pairs that the steps of fuzzy deduplication found, as numbers of documents.

    Of documents of the same words only the first is compared with others; here its pairs are those of all of them.
    """
    begins = np.cumsum([0, *rows_of_parts])

    def pairs(kind: str) -> list[tuple[int, int]]:
        keys = np.concatenate([np.load(path) for path in (work / kind).glob("*.npy")], axis=1)
        ends = begins[(keys >> np.uint64(32)).astype(int)] + (keys & np.uint64(0xFFFFFFFF)).astype(int)
        return ends.T.tolist()

    same: dict[int, list[int]] = {number: [number] for number in range(int(begins[-1]))}
    for other, first in pairs("equal"):
        same[first].append(other)
    compared = [(a, b) for first, second in pairs("edges") for a in same[first] for b in same[second]]
    equal = [(a, b) for group in same.values() for a in group for b in group if a < b]
    return {(min(pair), max(pair)) for pair in compared + equal}


def connected(pairs: set[tuple[int, int]], count: int) -> np.ndarray:
    """For each document the number of its group."""
    left, right = np.array(sorted(pairs), int).reshape(-1, 2).T
    graph = sp.coo_matrix((np.ones(len(left)), (left, right)), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def parts_of(folder, names):
    """The parts of data sets in ``folder/in``, as a stage gets them."""
    return {name: sorted((folder / "in" / name).glob("*.parquet")) for name in names}
