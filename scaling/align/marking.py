"""Fine-tuning for spans and tags: a head at every token (BERT: arXiv 1810.04805, sections 4.2 and 5.3).

Rows are those of ``align finetune``: of an encoder ``[begin] question [separator] text [separator]``, of a decoder
``[start] question [delimiter] text [extract]``; without a question, the text alone. A text that is longer than a row
becomes several: of a sentence with tags each word stands in one of them, and rows of a text with a span overlap by
half. An encoder reads a word at its first token. A decoder reads it at its last, when it has seen all of it.
"""

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from scaling.align import task as tasks
from scaling.align.passages import FIRST, LAST, Passage
from scaling.align.task import Task
from scaling.config import schema as cfg
from scaling.config.refusal import refused
from scaling.data import loader
from scaling.data.batch import Scored, filled, scored
from scaling.data.chat.dialogues import Skipped
from scaling.data.control_tokenizer import DELIMITER, EXTRACT, MASKS, START, TASK
from scaling.data.rows import Rows
from scaling.data.tokenizer import Tokenizer
from scaling.evaluate.scoring.entities import entity_scores
from scaling.evaluate.scoring.metrics import exact_match, f1
from scaling.evaluate.tasks.request import Item
from scaling.interop.served import Served
from scaling.model import decoder, lora
from scaling.objectives.marking import SPAN, marking, scores
from scaling.objectives.objective import forward
from scaling.parallel.sharding import batch_sharding, replicated
from scaling.train.metrics import Log
from scaling.train.placement import local_rows, place
from scaling.train.recipe import Recipe
from scaling.train.run import Data, Run
from scaling.train.state import TrainState
from scaling.train.validation import Validation

log = logging.getLogger(__name__)

LONGEST = 30  # words of an answer


class Window(NamedTuple):
    """A row of a passage.

    Attributes:
        row: of arrays [T].
        first: number of its first word in the passage.
        places: where its words are read, int32 [n].
    """

    row: Scored
    first: int
    places: np.ndarray


class Marked(NamedTuple):
    """A passage with its rows."""

    passage: Passage
    windows: list[Window]


def recipe(config: cfg.Config, task: Task, file: str) -> Recipe:
    """The training for a task that marks words.

    Args:
        config: its ``align.task`` is ``task``.
        task: see there.
        file: name of the task's file in the run directory.
    """
    count = len(task.names)
    return Recipe(
        "align finetune",
        data=lambda config, words: data(config, words, task),
        objective=lambda config: marking(config, count),
        outputs=count or SPAN,
        suffix=TASK,
        encoder_suffix=MASKS,
        counts_epochs=True,
        unit="nats a word" if count else "nats a row",
        files={file: task.text},
        validation=lambda run, frozen, log: Judged(run, log, task),
    )


class HeldOut(list[Scored]):
    """The rows of passages, with the passages.

    Args:
        marked: whose rows these are, in their order.
    """

    def __init__(self, marked: Sequence[Marked]) -> None:
        super().__init__(window.row for each in marked for window in each.windows)
        self.marked = marked


def data(config: cfg.Config, words: Tokenizer, task: Task) -> Data:
    """Rows of ``config.data.train``; held out are passages, as ``finetune.data`` has examples.

    Raises:
        FileNotFoundError, ValueError: as ``task.made``; or knobs that do not go with such a task.
    """
    room = config.train.sequence_length
    if config.align.lm_weight:
        raise refused("align.lm_weight", config.align.lm_weight, f"must be 0 for {task.name}, which marks words")
    if config.mesh.context > 1:
        raise refused("mesh.context", config.mesh.context, f"must be 1 for {task.name}, which marks words")
    skipped = Skipped(refuses=config.data.bad_records == "error")
    cut = windows(words, config.model.causal, room, spans=not task.layout.words)

    def make(item: Item) -> Marked:
        passage = task.passage(item)
        return Marked(passage, cut(passage))

    def read(path: str, split: str) -> list[Marked]:
        found = list(tasks.made(task, path, split, skipped, make))
        if not found:
            raise ValueError(f"{path}: no example fits config.train.sequence_length={room}")
        return found

    training, validation = tasks.splits(task, config.data, read)
    skipped.summary()
    whole = np.cumsum([len(each.windows) for each in validation]) <= config.eval.tokens // room
    if not whole[0]:
        raise refused("eval.tokens", config.eval.tokens, f"must hold {validation[0].passage.where} in rows of {room}")
    rows = [window.row for each in training for window in each.windows]
    several = sum(len(each.windows) > 1 for each in training)
    log.info(
        "%s: %d texts to train on, %d of them in several rows, and %d held out",
        task.name, len(training), several, len(validation),
    )  # fmt: skip
    return Data(
        Rows.of(rows, config), HeldOut([each for each, fits in zip(validation, whole, strict=True) if fits]), None
    )


def windows(words: Tokenizer, causal: bool, room: int, spans: bool) -> Callable[[Passage], list[Window]]:
    """Cuts passages into rows.

    Args:
        words: tokenizer.
        causal: rows are a decoder's.
        room: T of a row.
        spans: passages have spans, and not tags.

    Raises:
        ValueError: the tokenizer has no such control tokens; and from what is returned, a question that leaves no room.
    """
    if causal and START not in words.controls:
        raise ValueError(f"the tokenizer {words.name!r} has no tokens around texts; {words.name}{TASK} has them")

    def cut(passage: Passage) -> list[Window]:
        before, after, types = _frame(words, causal, passage.question)
        space = room - len(before) - len(after)
        if space < 1:
            raise ValueError(
                f"{passage.where}: a question of {len(before) - 2} tokens leaves no room in a row of {room}"
            )
        # A word without tokens, such as an invisible character, is read as an end of text.
        pieces = [
            ids[:space] if len(ids) else np.asarray([words.eot], np.int32) for ids in words.encode_batch(passage.words)
        ]
        sizes = np.array([len(ids) for ids in pieces])
        found = []
        for first, last in _cuts(sizes, space, space // 2 if spans else 0):
            ids = np.concatenate([before, *pieces[first:last], after])
            kinds = (
                None if types is None else np.concatenate([types[:-1], np.full(len(ids) - len(types) + 1, types[-1])])
            )
            ends = len(before) + np.cumsum(sizes[first:last])
            places = ends - 1 if causal else ends - sizes[first:last]
            row = scored(ids, room, 0.0, types=kinds)
            labels = passage.labels[first:last]
            found.append(Window((_span if spans else _tags)(row, places, labels), first, places))
        return found

    return cut


def _frame(words: Tokenizer, causal: bool, question: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Ids before the words and after them, and of an encoder the types of all of these."""
    if causal:
        start, delimiter, extract = (
            np.asarray([words.controls[token]], np.int32) for token in (START, DELIMITER, EXTRACT)
        )
        before = [start] if question is None else [start, words.encode(question), delimiter]
        return np.concatenate(before), extract, None
    ids, types = words.framed("") if question is None else words.framed(question, "")
    return ids[:-1], ids[-1:], types


def _cuts(sizes: np.ndarray, space: int, overlap: int) -> list[tuple[int, int]]:
    """Words of each row, first and after the last: as many as fit, and again those of the last ``overlap`` tokens."""
    ends = np.cumsum(sizes)
    starts = ends - sizes
    found, first = list[tuple[int, int]](), 0
    while True:
        last = int(np.searchsorted(ends, starts[first] + space, side="right"))
        found.append((first, last))
        if last == len(sizes):
            return found
        # The next row holds at least one word more.
        first = int(np.searchsorted(starts, max(starts[last] - overlap, ends[last] - space)))


def _tags(row: Scored, places: np.ndarray, labels: Sequence[int]) -> Scored:
    """The row with its words as ``objectives.marking`` reads tags."""
    reads, known = np.zeros_like(row.reads), np.zeros_like(row.labels)
    reads[places], known[places] = 1, labels
    return row._replace(reads=reads, labels=known)


def _span(row: Scored, places: np.ndarray, labels: Sequence[int]) -> Scored:
    """The row with its words as ``objectives.marking`` reads a span; where it is cut, it is not in this row."""
    weights, known = row.reads.copy(), np.zeros_like(row.labels)
    weights[places] = 1
    if sum(labels) == FIRST + LAST:
        known[places] = labels
    else:
        known[row.reads > 0] = FIRST + LAST
    return row._replace(weights=weights, labels=known)


def tags_of(marked: Marked, found: Sequence[np.ndarray]) -> list[int]:
    """The most likely tag of each word, by the scores [T, tags] of each row."""
    return [
        int(tag) for window, each in zip(marked.windows, found, strict=True) for tag in each[window.places].argmax(1)
    ]


def span_of(marked: Marked, found: Sequence[np.ndarray]) -> tuple[int, int]:
    """The first word and the last of the likeliest answer, by the scores [T, 2] of each row."""
    best = (-np.inf, 0, 0)
    for window, each in zip(marked.windows, found, strict=True):
        first, last = each[window.places].astype(np.float64).T
        words = np.arange(len(last))
        length = words - words[:, None] + 1  # [first, last]
        total = np.where((length >= 1) & (length <= LONGEST), first[:, None] + last, -np.inf)
        i, j = divmod(int(total.argmax()), len(last))
        best = max(best, (float(total[i, j]), window.first + i, window.first + j))
    return best[1], best[2]


def has_entities(task: Task) -> bool:
    """Whether the tags of a task are those of entities: O, and others that begin with B- or I-."""
    return all(tag == "O" or tag[:2] in ("B-", "I-") for tag in task.layout.labels)


def measures(task: Task, marked: Sequence[Marked], found: Sequence[Sequence[np.ndarray]]) -> dict[str, float]:
    """Exact match and F1 of answers as SQuAD counts them, in [0, 1]; or F1, precision and recall of entities.

    Args:
        task: with a span, or with the tags of entities.
        marked: passages whose marks are known.
        found: scores of the rows of each.
    """
    if task.layout.span:
        said = [each.passage.answer(*span_of(each, rows)) for each, rows in zip(marked, found, strict=True)]
        pairs = list(zip(said, (each.passage.references for each in marked), strict=True))
        by_name = {"exact_match": exact_match, "f1": f1}
        return {name: float(np.mean([score(*pair) for pair in pairs])) for name, score in by_name.items()}
    names = list(task.layout.labels)
    right = [[names[tag] for tag in each.passage.labels] for each in marked]
    return entity_scores(
        right, [[names[tag] for tag in tags_of(each, rows)] for each, rows in zip(marked, found, strict=True)]
    )


def computed(network: cfg.Network, params: decoder.Params, batch: Scored, parts: int = 0) -> jax.Array:
    """Scores [B, T, outputs] of a batch of arrays [1, B, T]; ``parts`` as ``train.pipeline_microbatches``."""
    model = decoder.merge(network, params)
    hidden, _, _ = forward(model, jax.tree.map(lambda x: x[0], batch), None, parts)
    return scores(model, hidden, 0.0, None)


class Judged(Validation):
    """A validation that also reads the answers and the entities of the passages that are held out.

    Args:
        run: its held-out rows are ``HeldOut``.
        log: where the numbers go.
        task: of the run.
    """

    def __init__(self, run: Run, log: Log, task: Task) -> None:
        config = run.config
        super().__init__(run, marking(config, len(task.names)), log)
        assert isinstance(run.data.held_out, HeldOut)
        self._task, self._held_out = task, run.data.held_out

        def compute(params: Any, base: Any, batch: Scored) -> jax.Array:
            whole = lora.whole(config, params, base)
            return computed(config.network, whole, batch, config.train.pipeline_microbatches)

        self._compute = jax.jit(compute, out_shardings=replicated(run.mesh))

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """As of ``Validation``, with ``measures``."""
        means, held_out, run = super().evaluate(state), self._held_out, self._run
        if self._task.layout.words and not has_entities(self._task):
            return means
        size, sharding = run.config.eval.batch_sequences, batch_sharding(run.mesh)
        rows, found = local_rows(sharding, size), list[np.ndarray]()
        for batch in loader.evaluation_batches(held_out, len(held_out), size, rows):
            placed = place(batch, rows, size, sharding)
            found.extend(np.asarray(self._compute(state["params"], run.base, placed)))
        each = iter(found)
        return means | measures(self._task, held_out.marked, [[next(each) for _ in m.windows] for m in held_out.marked])


class Marker:
    """A fine-tuned model with a task that marks words.

    Args:
        served: the model, of as many outputs as the task needs.
        task: see there.
        room: tokens of a row, as in training.
    """

    def __init__(self, served: Served, task: Task, room: int) -> None:
        network, words = served.network, served.words
        self.served, self.task, self._room = served, task, room
        self._cut = windows(words, network.model.causal, room, spans=not task.layout.words)
        replica = jax.NamedSharding(served.mesh, jax.P())
        self._compute = jax.jit(functools.partial(computed, network), out_shardings=replica)

    def __call__(self, passages: Sequence[Passage], batch_size: int = 16) -> Iterator[dict[str, Any]]:
        """What is said of each passage: its ``tags`` with its ``words``, or the ``answer`` with its first character,
        ``start``.

        Args:
            passages: of ``Task.passage``.
            batch_size: rows at a time, a multiple of the shards of a batch.
        """
        marked = [Marked(passage, self._cut(passage)) for passage in passages]
        rows = [window.row for each in marked for window in each.windows]
        found = list[np.ndarray]()
        for first in range(0, len(rows), batch_size):
            batch = filled((1, batch_size), {(0, i): row for i, row in enumerate(rows[first : first + batch_size])})
            with jax.set_mesh(self.served.mesh):
                placed = jax.device_put(batch, batch_sharding(self.served.mesh))
                found.extend(np.asarray(self._compute(self.served.params, placed)))
        each = iter(found)
        for one in marked:
            scores = [next(each) for _ in one.windows]
            if self.task.layout.words:
                tags = [self.task.names[tag] for tag in tags_of(one, scores)]
                yield {"words": [word.strip() for word in one.passage.words], "tags": tags}
            else:
                first, last = span_of(one, scores)
                yield {"answer": one.passage.answer(first, last), "start": one.passage.offsets[first][0]}
