"""Which items of a task occur in a training corpus: the n-gram report of GPT-3's Appendix C.

An item is dirty if any of its n-grams of words occurs in the corpus, or the whole item if it is shorter than n. Words
are separated by white space, in lower case and without punctuation. In scripts without spaces between words each
character is a word. n is the 5th percentile of the items' lengths in words, at least 8 and at most 13. Generated tasks
have short items, so their n may be below 8.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from scaling.evaluate.contamination.grams import Grams, numbered, words_of
from scaling.evaluate.scoring import metrics
from scaling.evaluate.scoring.metrics import mean_with_error
from scaling.evaluate.tasks.items import read_items
from scaling.evaluate.tasks.prompts import example_text
from scaling.evaluate.tasks.task import Task

MIN_WORDS = 8
MAX_WORDS = 13
PERCENTILE = 5
METRICS = tuple(name for name, metric in metrics.METRICS.items() if metric.item)  # each item has a score of its own

Samples = dict[tuple[int, str], dict[str, float]]  # (shots, metric) -> id of an item -> its score


@dataclasses.dataclass(frozen=True)
class Score:
    count: int
    mean: float  # NaN without items
    error: float  # standard error


@dataclasses.dataclass(frozen=True)
class Contamination:
    task: str
    n: int  # words in a gram
    total: int
    dirty: tuple[str, ...]  # ids of items
    documents: int  # that were searched

    @property
    def clean(self) -> int:
        return self.total - len(self.dirty)

    def scores(self, scores: Mapping[str, float]) -> dict[str, Score]:
        """Mean scores of all, dirty and clean items.

        Args:
            scores: id of an item -> its score; items without one are left out.
        """
        dirty = set(self.dirty)
        groups = {
            "all": list(scores.values()),
            "dirty": [score for item, score in scores.items() if item in dirty],
            "clean": [score for item, score in scores.items() if item not in dirty],
        }
        nothing = (float("nan"), float("nan"))
        return {
            name: Score(len(group), *(mean_with_error(group) if group else nothing)) for name, group in groups.items()
        }


def relative_difference(scores: Mapping[str, Score]) -> tuple[float, float]:
    """(clean - all) / all of ``Contamination.scores`` and its standard error, as fractions (Appendix C's table).

    All items are the clean and the dirty ones, so clean - all = (number of dirty / number of all) (clean - dirty); the
    error is that of this product. Without clean items, or with a score of 0, both are NaN.
    """
    everything, dirty, clean = (scores[name] for name in ("all", "dirty", "clean"))
    if not clean.count or not everything.mean:
        return float("nan"), float("nan")
    if not dirty.count:
        return 0.0, 0.0
    share = dirty.count / everything.count / everything.mean
    return share * (clean.mean - dirty.mean), abs(share) * math.hypot(clean.error, dirty.error)


@dataclasses.dataclass(frozen=True)
class Effect:
    """What contamination does to the scores of a task.

    Attributes:
        shots: demonstrations asked for.
        metric: one of ``METRICS``.
        scores: of all, dirty and clean items.
        difference: of clean from all items, relative to all; NaN without clean items or with a score of 0.
        error: its standard error.
    """

    shots: int
    metric: str
    scores: dict[str, Score]
    difference: float
    error: float


def effects_of(report: Contamination, samples: Samples) -> list[Effect]:
    """Scores of all, dirty and clean items, for each number of shots and metric."""
    found = []
    for (shots, metric), values in sorted(samples.items()):
        scores = report.scores(values)
        found.append(Effect(shots, metric, scores, *relative_difference(scores)))
    return found


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Text files to be searched: for each source its files and the field of the text in their records."""

    sources: tuple[tuple[tuple[str, ...], str], ...]

    @classmethod
    def find(cls, patterns: Sequence[str], text_key: str = "text") -> "Corpus":
        """Finds the files.

        Args:
            patterns: paths or globs of .txt, .jsonl(.gz) or .parquet; 'books' = the embedded corpus.
            text_key: field of the text in records.

        Raises:
            FileNotFoundError: nothing matches.
            ValueError: a directory, or a file that is empty or of an unknown format.
        """
        from scaling.data import books, sources

        found = []
        for pattern in patterns:
            where, key = (str(books.TRAIN), "text") if pattern == "books" else (pattern, text_key)
            found.append((tuple(sources.find(where)), key))
        return cls(tuple(found))

    @property
    def size(self) -> int:
        """Bytes on disk."""
        from scaling.data import sources

        return sum(sources.size(list(files)) for files, _ in self.sources)

    def documents(self, progress: Callable[[int], None] = lambda count: None) -> Iterator[str]:
        """The texts; ``progress`` is told how many more bytes on disk were read.

        Raises:
            ValueError: a malformed file.
        """
        from scaling.data import sources

        for files, key in self.sources:
            yield from sources.texts(list(files), key, progress)


def item_texts(tasks: Sequence[Task], data: str | Path | None = None) -> dict[str, tuple[dict[str, str], bool]]:
    """What ``search`` looks for, by the name of the task: its test items' texts by id, and whether they are generated.

    Raises:
        FileNotFoundError: a task's files are not there.
        ValueError: a malformed record.
    """
    found = {}
    for task in tasks:
        items = read_items(task, data, demonstrations=False).test
        found[task.name] = ({item.id: example_text(task, item) for item in items}, task.generator is not None)
    return found


def gram_length(lengths: Sequence[int], minimum: int = MIN_WORDS) -> int:
    """n for items of these lengths in words."""
    return int(np.clip(np.percentile(lengths, PERCENTILE, method="lower"), max(minimum, 1), MAX_WORDS))


def contamination(
    tasks: Sequence[Task], corpus: str, text_key: str = "text", data: str | Path | None = None
) -> list[Contamination]:
    """Searches a corpus for the items of tasks. The corpus is streamed, once for all tasks.

    Args:
        tasks: whose test items are searched for.
        corpus: path or glob of .txt, .jsonl(.gz) or .parquet; 'books' = the embedded corpus.
        text_key: field of the text in records.
        data: directory of the tasks' files.

    Raises:
        FileNotFoundError: no such corpus, or a task's files are not there.
        ValueError: a malformed file.
    """
    return search(item_texts(tasks, data), Corpus.find([corpus], text_key).documents())


def search(examples: Mapping[str, tuple[Mapping[str, str], bool]], documents: Iterable[str]) -> list[Contamination]:
    """As ``contamination``, for texts.

    Args:
        examples: name of a task -> (id of an item -> its text; whether the task is generated, which allows n below 8).
        documents: texts of the corpus.
    """
    numbers: dict[str, int] = {}  # word -> 1, 2, ...
    owners: list[tuple[str, str]] = []
    owned: dict[int, list[tuple[int, np.ndarray]]] = {}  # n -> (number of the item, its words)
    lengths = {}
    for name, (texts, generated) in examples.items():
        words = {item: words_of(text) for item, text in texts.items()}
        n = lengths[name] = gram_length([len(w) for w in words.values()], 1 if generated else MIN_WORDS)
        for item, its_words in words.items():
            ids = np.array([numbers.setdefault(word, len(numbers) + 1) for word in its_words], np.uint32)
            if its_words:
                owned.setdefault(min(n, len(its_words)), []).append((len(owners), ids))
            owners.append((name, item))
    grams = [Grams.of(items, n) for n, items in owned.items()]
    dirty: set[tuple[str, str]] = set()
    searched = 0
    for text in documents:
        ids = numbered(words_of(text), numbers)
        for of_length in grams:
            for gram in np.unique(of_length.find(ids)[1]):
                dirty.update(owners[owner] for owner in of_length.owners_of(gram))
        searched += 1
    return [
        Contamination(name, lengths[name], len(texts), tuple(item for item in texts if (name, item) in dirty), searched)
        for name, (texts, _) in examples.items()
    ]
