"""What exact and fuzzy deduplication share: steps as data, keys of documents, sorted files, and the filter at the end.

Deduplication is a sequence of steps. A step is a function and a list of inputs, and each input is a task: it reads a
part or files that earlier steps wrote, writes files, and returns plain figures. Tasks of one step are independent, so
they run in any order, on any number of processes, and again after a crash.

A document is known by its key, an unsigned 64-bit integer: the number of its part in the upper 32 bits, its row in the
lower 32 bits. Parts are numbered by the order of the data sets, then by name, so keys are in the order of the corpus,
and a comparison of two keys does not depend on how the corpus is cut into parts.

Files have entries as columns of an array (rows, entries) of unsigned 64-bit integers, sorted by row 0 (a hash or a
key). A task that handles one range of hashes finds its entries in each file by binary search and reads only these.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scaling import durable
from scaling.corpus import documents, outcome

ROW_BITS = np.uint64(32)
ENTRIES = 8_000_000  # of a partition, about; 16 bytes each, and three times as much while they are sorted


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a data set: where it is read, and where the step at the end writes what is left of it."""

    number: int
    source: Path
    target: Path


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a stage.

    Attributes:
        name: of the step, unique in its stage.
        function: of the module's top level, so that it can be pickled; returns values for a JSON file.
        inputs: the arguments of each task.
        files: kinds of files (``path_of``) that each task writes into ``work``, with the number of the task.
    """

    name: str
    function: Callable[..., dict[str, Any]]
    inputs: list[tuple[Any, ...]]
    files: tuple[str, ...] = ()

    def outputs(self, work: Path, number: int) -> tuple[Path, ...]:
        """The files of a task, by its number."""
        parts = (each.target for each in self.inputs[number] if isinstance(each, Part) and not self.files)
        return (*(path_of(work, kind, number) for kind in self.files), *parts)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The parts of all data sets as the tasks know them; small, whatever the number of parts.

    Attributes:
        work: folder for files of the steps.
        names: of the data sets; the first has the highest priority.
        starts: for each data set the number of its first part.
        parts: number of parts.
        rows: number of documents.
    """

    work: Path
    names: tuple[str, ...]
    starts: tuple[int, ...]
    parts: int
    rows: int

    def data_sets(self, keys: np.ndarray) -> np.ndarray:
        """For each key the position of its data set in ``names``."""
        return np.searchsorted(np.array(self.starts, np.uint64), keys >> ROW_BITS, side="right") - 1


def find(found: Mapping[str, Sequence[Path]], folder: Path, order: Sequence[str]) -> tuple[Corpus, list[Part]]:
    """Numbers the parts.

    Args:
        found: data set -> its parts, in their order.
        folder: of the stage: parts are written into ``DATASET/``, and files of the steps into ``work/``.
        order: names of data sets from which a copy is kept rather than from others, the highest priority first. Data
            sets that are not named follow in the order of ``found``.

    Raises:
        ValueError: ``order`` has a name that is no data set, or a name twice.
    """
    check_order("deduplication", order, tuple(found))
    ordered = [*order, *(name for name in found if name not in order)]
    parts: list[Part] = []
    starts: list[int] = []
    for name in ordered:
        starts.append(len(parts))
        for path in found[name]:
            parts.append(Part(len(parts), path, folder / name / path.name))
    rows = sum(documents.rows(part.source) for part in parts)
    return Corpus(folder / "work", tuple(ordered), tuple(starts), len(parts), rows), parts


def check_order(stage: str, order: Sequence[str], names: Sequence[str]) -> None:
    """Refuses an order of data sets that is none.

    Raises:
        ValueError: it has a name that is none of ``names``, or a name twice.
    """
    for name in order:
        if name not in names:
            raise ValueError(f"{stage}: order names the data set {name!r}, which is none of {', '.join(names)}")
    if len(set(order)) < len(order):
        raise ValueError(f"{stage}: order={tuple(order)} names a data set twice")


def keys_of(part: Part, rows: np.ndarray) -> np.ndarray:
    """The keys of rows of a part."""
    return (np.uint64(part.number) << ROW_BITS) | rows.astype(np.uint64)


def path_of(work: Path, kind: str, number: int) -> Path:
    """The file of a kind that belongs to a part or to a partition."""
    return work / kind / f"{number:06d}.npy"


def save(array: np.ndarray, path: Path) -> None:
    """Writes an array, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with durable.replaced(path) as partial, partial.open("wb") as file:
        np.save(file, np.ascontiguousarray(array))


def save_sorted(entries: np.ndarray, path: Path) -> None:
    """Writes entries (rows, N) sorted by row 0; those that are equal there keep their order."""
    save(entries[:, np.argsort(entries[0], kind="stable")], path)


def between(path: Path, low: int, high: int) -> np.ndarray:
    """The entries with low <= row 0 < high of a sorted file, read without the rest of the file: (rows, n)."""
    entries = np.load(path, mmap_mode="r", allow_pickle=False)
    if not entries.size:
        return np.array(entries)
    # Python's integers, since the upper end of all hashes, 2 ** 64, is no unsigned 64-bit integer.
    first, last = (
        entries.shape[1] if limit >= 2**64 else int(np.searchsorted(entries[0], np.uint64(limit)))
        for limit in (low, high)
    )
    return np.array(entries[:, first:last])


def bounds(partition: int, partitions: int) -> tuple[int, int]:
    """The range of 64-bit hashes that is a partition's."""
    return (partition << 64) // partitions, ((partition + 1) << 64) // partitions


def partition_entries(work: Path, kind: str, parts: int, low: int, high: int) -> np.ndarray:
    """The entries of all parts in a range of hashes, sorted by hash, equal hashes by key: (rows, n)."""
    found = [between(path_of(work, kind, number), low, high) for number in range(parts)]
    entries = np.concatenate(found, axis=1)
    del found
    return entries[:, np.argsort(entries[0], kind="stable")]


def groups(*sorted_rows: np.ndarray) -> np.ndarray:
    """For sorted entries the places where a group of equal values begins, with the number of entries at the end."""
    length = len(sorted_rows[0])
    new = np.ones(length, bool)
    if length:
        new[1:] = np.any([row[1:] != row[:-1] for row in sorted_rows], axis=0)
    return np.append(np.flatnonzero(new), length)


def gather(work: Path, kind: str, keys: np.ndarray) -> np.ndarray:
    """The rows that belong to keys, of files with one row for each document of a part.

    Args:
        work: folder of the steps.
        kind: of the files.
        keys: (N,), in any order; at least one.

    Returns:
        (N, ...)
    """
    order = np.argsort(keys, kind="stable")
    parts = keys[order] >> ROW_BITS
    rows = (keys[order] & np.uint64(0xFFFFFFFF)).astype(np.int64)
    found = []
    ends = groups(parts)
    for first, last in itertools.pairwise(ends):
        values = np.load(path_of(work, kind, int(parts[first])), mmap_mode="r", allow_pickle=False)
        found.append(values[rows[first:last]])
    assert found, "no keys"
    values = np.concatenate(found)
    result = np.empty_like(values)
    result[order] = values
    return result


def drop(corpus: Corpus, part: Part, files: int, reason: str) -> dict[str, Any]:
    """The last step: writes a part without its duplicates.

    Args:
        corpus: as ``find`` numbers it.
        part: to read and to write.
        files: number of the files ``losers`` with entries (key of a duplicate, key of the document that is kept).
        reason: under which duplicates are counted ("exact duplicate"); the data set of the document that is kept is
            added where it is another one.

    Returns:
        A ``Tally`` as plain values.

    Raises:
        ValueError: the part is damaged.
        OSError: cannot read or write.
    """
    table = documents.read(part.source)
    low, high = (int(number) << int(ROW_BITS) for number in (part.number, part.number + 1))
    found = [between(path_of(corpus.work, "losers", number), low, high) for number in range(files)]
    losers, keepers = np.concatenate(found, axis=1) if found else np.zeros((2, 0), np.uint64)
    sets, kept_sets = corpus.data_sets(losers), corpus.data_sets(keepers)
    keep = [""] * len(table)
    for key, mine, kept in zip(losers, sets, kept_sets, strict=True):
        keep[int(key) & 0xFFFFFFFF] = reason if mine == kept else f"{reason} of a document in {corpus.names[kept]}"
    tally = outcome.Tally(documents_in=len(table), bytes_in=documents.text_bytes(table))
    left = outcome.kept(table, keep, tally)
    tally.documents_out, tally.bytes_out = len(left), documents.text_bytes(left)
    part.target.parent.mkdir(parents=True, exist_ok=True)
    documents.write(left, part.target)
    return tally.to_dict()


def run(steps: Sequence[Step]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Runs steps one task after another, in this process: for tests, measurements and small corpora.

    Yields:
        Name of the step and result of a task.
    """
    for step in steps:
        for arguments in step.inputs:
            yield step.name, step.function(*arguments)


def tally(results: Sequence[tuple[str, dict[str, Any]]]) -> outcome.Tally:
    """The figures of the documents, from the results of the step "drop" among those of ``run``."""
    total = outcome.Tally()
    for name, result in results:
        if name == "drop":
            total.add(outcome.Tally.of(result))
    return total
