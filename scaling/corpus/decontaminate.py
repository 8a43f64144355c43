"""Cuts items of evaluation tasks out of documents, by the rule of GPT-3 (arXiv 2005.14165, Appendix C).

The paper says of its training set: grams are 13 words, in lower case, separated by white space, without punctuation. A
gram of a test or development set that occurs in a document is removed with a window of 200 characters around it, which
splits the document into pieces. Pieces of less than 200 characters are discarded. Documents that are split into more
than 10 pieces are removed. Grams that occur in more than 10 documents are ignored: they are phrases of common culture,
legal boilerplate and the like.

What the paper leaves open is chosen so: the window is 200 characters on each side of the gram, windows that meet are
one, and pieces are counted before the short ones are discarded. Items are the test items of a task with their right
answers, and words are those of ``scaling contamination``. Items of fewer than 13 words have no gram, so they are not
found; ``collect`` counts them.

There are four steps:

1. ``collect`` writes the grams of all items, once (``Wanted``).
2. ``find`` gives the grams that are in a part (``Found``); each part by itself.
3. ``combine`` counts the documents of each gram over all parts.
4. ``decontaminate`` cuts a part; each part by itself. It searches nothing, so the whole text is searched once.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa

from scaling import durable
from scaling.config.knob import knob
from scaling.corpus.documents import with_column
from scaling.corpus.outcome import Tally
from scaling.evaluate.contamination.grams import Grams, numbered, spans_of, words_of
from scaling.evaluate.contamination.search import item_texts
from scaling.evaluate.tasks.catalogue import find_tasks


@dataclasses.dataclass(frozen=True)
class Decontaminate:
    tasks: str = knob("", "", "tasks, groups of tasks, or task files (.toml), separated by commas")
    data: str = knob("", "path", "directory with the tasks' files")
    words: int = knob(13, "words", "length of a gram")
    window: int = knob(200, "characters", "what is cut on each side of a gram")
    shortest: int = knob(200, "characters", "shorter pieces of a cut document are discarded")
    most_pieces: int = knob(10, "pieces", "documents that are split into more are discarded")
    most_documents: int = knob(10, "documents", "grams that are in more of them are ignored as common")


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The grams of the items of tasks.

    Attributes:
        tasks: their names; the owners of ``grams`` are numbers of them.
        numbers: word -> its number, from 1.
        grams: of all items.
    """

    tasks: tuple[str, ...]
    numbers: dict[str, int]
    grams: Grams

    def write(self, path: Path) -> None:
        """Writes a file; equal grams give equal bytes."""
        grams = {name: getattr(self.grams, name) for name in ("rows", "hashes", "first", "owners")}
        _save(path, tasks=_packed(self.tasks), words=_packed(self.numbers), **grams)

    @classmethod
    def read(cls, path: Path) -> "Wanted":
        """The inverse of ``write``."""
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        words = _unpacked(arrays.pop("words"))
        tasks = tuple(_unpacked(arrays.pop("tasks")))
        return cls(tasks, {word: number for number, word in enumerate(words, start=1)}, Grams(**arrays))


@dataclasses.dataclass(frozen=True)
class Found:
    """Grams that are in the documents of a part, in the order of their places.

    Attributes:
        rows: of the documents in the part.
        starts: number of the first word in the document.
        grams: their numbers.
    """

    rows: np.ndarray
    starts: np.ndarray
    grams: np.ndarray

    def write(self, path: Path) -> None:
        """Writes a file; equal ones have equal bytes."""
        _save(path, rows=self.rows, starts=self.starts, grams=self.grams)

    @classmethod
    def read(cls, path: Path) -> "Found":
        """The inverse of ``write``."""
        with np.load(path, allow_pickle=False) as file:
            return cls(**file)


def digest(knobs: Decontaminate) -> str:
    """A digest of the items of the tasks, which changes if the files of the tasks do.

    Raises:
        FileNotFoundError, ValueError: as of ``collect``.
    """
    return hashlib.sha256(json.dumps(_items(knobs)).encode()).hexdigest()


def _items(knobs: Decontaminate) -> dict[str, list[str]]:
    """The texts of the items, by the name of the task."""
    for name in ("words", "shortest", "most_pieces"):
        if getattr(knobs, name) < 1:
            raise ValueError(f"decontaminate.{name} must be at least 1, not {getattr(knobs, name)}")
    for name in ("window", "most_documents"):
        if getattr(knobs, name) < 0:
            raise ValueError(f"decontaminate.{name} must be 0 or more, not {getattr(knobs, name)}")
    found = item_texts(find_tasks(knobs.tasks), knobs.data or None)
    return {name: [*items.values()] for name, (items, _) in found.items()}


def collect(knobs: Decontaminate) -> tuple[Wanted, Tally]:
    """The grams of all items of the tasks; the tally counts by task items, grams, and items that have none.

    Raises:
        FileNotFoundError: a task's files are not there.
        ValueError: no such task, a malformed record, or a knob out of range.
    """
    texts = _items(knobs)
    numbers: dict[str, int] = {}
    owned, tally = [], Tally()
    for task, (name, items) in enumerate(texts.items()):
        for text in items:
            words = words_of(text)
            owned.append((task, np.array([numbers.setdefault(w, len(numbers) + 1) for w in words], np.uint32)))
            tally.count(f"{name}: items without a gram", len(words) < knobs.words)
        tally.count(f"{name}: items", len(items))
    grams = Grams.of(owned, knobs.words)
    for task, name in enumerate(texts):
        tally.count(f"{name}: grams of items", int((grams.owners == task).sum()))
    return Wanted(tuple(texts), numbers, grams), tally


def find(documents: pa.Table, wanted: Wanted) -> Found:
    """The grams that are in the documents of a part."""
    found = []
    for row, text in enumerate(documents["text"]):
        starts, grams = wanted.grams.find(numbered(words_of(text.as_py()), wanted.numbers))
        if len(starts):
            found.append((np.full(len(starts), row), starts, grams))
    arrays = zip(*found, strict=True) if found else [()] * 3
    return Found(*(np.concatenate([np.empty(0, np.int64), *each]) for each in arrays))


def combine(parts: Iterable[Found], wanted: Wanted, knobs: Decontaminate) -> tuple[np.ndarray, Tally]:
    """Which grams are common, after all parts of all data sets were searched.

    Args:
        parts: of ``find``; only one is held at a time.
        wanted: of ``collect``.
        knobs: ``most_documents`` is used.

    Returns:
        bool [number of grams]. The tally counts by task the different grams that were found, and the common ones.
    """
    documents = np.zeros(len(wanted.grams.rows), np.int64)
    for part in parts:
        once = np.unique(np.stack([part.rows, part.grams]), axis=1)
        documents += np.bincount(once[1], minlength=len(documents))
    common = documents > knobs.most_documents
    owned = np.diff(wanted.grams.first)
    tally = Tally()
    for task, name in enumerate(wanted.tasks):
        mine = wanted.grams.owners == task
        tally.count(f"{name}: different grams found", int((mine & np.repeat(documents > 0, owned)).sum()))
        tally.count(f"{name}: common grams ignored", int((mine & np.repeat(common, owned)).sum()))
    return common, tally


def write_common(common: np.ndarray, path: Path) -> None:
    """Writes what ``combine`` returned."""
    _save(path, common=common)


def read_common(path: Path) -> np.ndarray:
    """The inverse of ``write_common``."""
    with np.load(path, allow_pickle=False) as file:
        return file["common"]


def decontaminate(
    documents: pa.Table, knobs: Decontaminate, wanted: Wanted, found: Found, common: np.ndarray
) -> tuple[pa.Table, Tally]:
    """Cuts grams that are not common, with their windows, out of the documents of a part.

    The pieces that remain of a document ``ID`` are documents ``ID#1``, ``ID#2``, ..., which have its other columns. All
    other documents stay as they are.

    Args:
        documents: of the part.
        knobs: of the stage.
        wanted: of ``collect``.
        found: of ``find``, of the same documents.
        common: of ``combine``.

    Returns:
        The documents. The tally counts for each task the grams found that are not common, the documents touched, and of
        these the windows cut, or the documents discarded.
    """
    tally = Tally()
    counted = ~common[found.grams]
    starts, grams = found.starts[counted], found.grams[counted]
    touched, first = np.unique(found.rows[counted], return_index=True)
    ids, texts = documents["id"].to_pylist(), documents["text"].to_pylist()
    edges = [*first.tolist(), len(starts)]
    pieces = {}  # row -> the texts that remain
    for row, begin, end in zip(touched.tolist(), edges, edges[1:], strict=False):
        owners = [{wanted.tasks[task] for task in wanted.grams.owners_of(gram)} for gram in grams[begin:end]]
        windows = _windows(texts[row], starts[begin:end], owners, knobs)
        pieces[row] = _pieces(texts[row], ids[row], windows, knobs, tally)
        for name in sorted(set().union(*owners)):
            tally.count(f"{name}: grams found", sum(name in each for each in owners))
            tally.count(f"{name}: documents touched")
            if pieces[row]:
                tally.count(f"{name}: windows cut", sum(name in window.tasks for window in windows))
            else:
                tally.count(f"{name}: documents discarded")
    if not pieces:
        return documents, tally
    taken, new_ids, new_texts = [], [], []
    for row, (id, text) in enumerate(zip(ids, texts, strict=True)):
        new = (
            [(f"{id}#{number}", piece) for number, piece in enumerate(pieces[row], 1)]
            if row in pieces
            else [(id, text)]
        )
        taken += [row] * len(new)
        new_ids += [id for id, _ in new]
        new_texts += [text for _, text in new]
    left = with_column(documents.take(pa.array(taken, pa.int64())), "id", pa.array(new_ids, pa.string()))
    return with_column(left, "text", pa.array(new_texts, pa.large_string())), tally


@dataclasses.dataclass
class _Window:
    """Characters ``start`` to ``stop`` (not included) of a text, with grams of these tasks in it."""

    start: int
    stop: int
    tasks: set[str]


def _windows(text: str, starts: np.ndarray, owners: list[set[str]], knobs: Decontaminate) -> list[_Window]:
    """The windows around grams, which begin at the words ``starts`` and belong to the tasks ``owners``."""
    spans = spans_of(text)
    windows: list[_Window] = []
    for word, tasks in zip(starts.tolist(), owners, strict=True):
        start = max(0, spans[word][0] - knobs.window)
        stop = min(len(text), spans[word + knobs.words - 1][1] + knobs.window)
        if windows and start <= windows[-1].stop:
            windows[-1].stop = stop
            windows[-1].tasks |= tasks
        else:
            windows.append(_Window(start, stop, set(tasks)))
    return windows


def _pieces(text: str, id: str, windows: list[_Window], knobs: Decontaminate, tally: Tally) -> list[str]:
    """What remains of a text without the windows; nothing if the document is discarded."""
    edges = [0, *(edge for window in windows for edge in (window.start, window.stop)), len(text)]
    pieces = [text[start:stop] for start, stop in zip(edges[::2], edges[1::2], strict=True) if start < stop]
    if len(pieces) > knobs.most_pieces:
        tally.drop(f"split into more than {knobs.most_pieces} pieces", id, text)
        return []
    long = [piece for piece in pieces if len(piece) >= knobs.shortest]
    if not long:
        tally.drop("no piece is long enough", id, text)
        return []
    tally.count("documents cut")
    tally.count("windows cut", len(windows))
    tally.count("short pieces discarded", len(pieces) - len(long))
    for window in windows:
        tally.example("window cut", f"{id} at {window.start}", text[window.start : window.stop])
    return long


def _packed(names: Iterable[str]) -> np.ndarray:
    """Names without line ends as bytes."""
    return np.frombuffer("\n".join(names).encode(), np.uint8)


def _unpacked(data: np.ndarray) -> list[str]:
    return data.tobytes().decode().split("\n") if data.size else []


def _save(path: Path, **arrays: np.ndarray) -> None:
    """Writes arrays whole or not at all."""
    with durable.replaced(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # another argument is a bool
