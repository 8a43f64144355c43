"""Supervised fine-tuning for a task (GPT-1: Radford et al. 2018, sections 3.2 and 3.3).

Each row of an example is ``[start] text [delimiter] text ... [extract]``, and the final state of the last token goes to
a new head. Two texts without an order make two rows, one for each order, whose states are added; multiple choice makes
a row for each choice. The language model's loss on the same rows may be added. Rows of an encoder are one text or two
as it reads them, and the state of the first token goes to the head (BERT: arXiv 1810.04805, section 4). Tasks that mark
words are in ``marking``.
"""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from scaling.align import marking
from scaling.align import task as tasks
from scaling.align.task import Example, Task
from scaling.config import schema as cfg
from scaling.config.refusal import must_be_multiple, refused
from scaling.data.batch import Scored, scored
from scaling.data.chat.dialogues import Skipped
from scaling.data.control_tokenizer import DELIMITER, EXTRACT, MASKS, START, TASK
from scaling.data.rows import Rows
from scaling.data.tokenizer import Tokenizer
from scaling.objectives.classification import Form, classification, derived
from scaling.train.recipe import Recipe
from scaling.train.run import Data

log = logging.getLogger(__name__)

FILE = "task.toml"  # of a run directory: the task that it was trained on


def recipe(config: cfg.Config) -> Recipe:
    """The training of a config, whose task decides the outputs of its model.

    Raises:
        FileNotFoundError, ValueError: as ``task.find``.
    """
    task = tasks.find(config.align.task)
    if task.marks:
        return marking.recipe(config, task, FILE)
    return Recipe(
        "align finetune",
        data=lambda config, words: data(config, words, task),
        objective=lambda config: classification(config, task.form),
        outputs=task.form.outputs,
        suffix=TASK,
        encoder_suffix=MASKS,
        counts_epochs=True,
        unit="nats an example" if task.form.classes else "squared units an example",
        derived=derived,
        files={FILE: task.text},
    )


def data(config: cfg.Config, words: Tokenizer, task: Task) -> Data:
    """Rows of ``config.data.train``; held out are those of ``config.data.validation``, of the test file of the same
    folder, or a fraction.

    Raises:
        FileNotFoundError, ValueError: as ``task.read``; nothing fits the rows; or sizes that part an example's rows.
    """
    form, room = task.form, config.train.sequence_length
    _check(config, form)
    skipped = Skipped(refuses=config.data.bad_records == "error")

    def examples(place: str, split: str) -> list[list[Scored]]:
        rows = layout(words, config.model.causal)
        found = [
            made for each in tasks.read(task, place, split, skipped) if (made := _rows(each, rows, room, form, skipped))
        ]
        if not found:
            raise ValueError(f"{place}: no example fits config.train.sequence_length={room}")
        return found

    training, validation = tasks.splits(task, config.data, examples)
    skipped.summary()
    log.info("%s: %d examples to train on, and %d held out", task.name, len(training), len(validation))
    validation = validation[: config.eval.tokens // (room * form.rows)]  # whole examples
    items: Sequence[list[Scored] | Scored] = training if form.rows > 1 else [row for rows in training for row in rows]
    return Data(Rows.of(items, config, form.rows), [row for rows in validation for row in rows], None)


def _check(config: cfg.Config, form: Form) -> None:
    """Refuses what cannot work for this form."""
    unit = f"the {form.rows} rows of an example, which belong together"
    must_be_multiple("train.microbatch_sequences", config.train.microbatch_sequences, form.rows, unit)
    must_be_multiple("eval.batch_sequences", config.eval.batch_sequences, form.rows, unit)
    if config.eval.tokens < config.train.sequence_length * form.rows:
        raise refused("eval.tokens", config.eval.tokens, f"must hold one example, {form.rows} rows")
    if config.align.lm_weight and (not config.model.tied_embedding or config.model.logit_bias):
        raise refused(
            "align.lm_weight",
            config.align.lm_weight,
            "must be 0 for a model with an output table or bias of its own, which the head takes the place of",
        )


class Row(NamedTuple):
    """Ids of a row, int32 [n], and of an encoder's the kind of each token, int32 [n]."""

    ids: np.ndarray
    types: np.ndarray | None = None


Layout = Callable[[Example], list[Row]]


def layout(words: Tokenizer, causal: bool) -> Layout:
    """Makes an example's rows: start, the texts with delimiters between, extract; or those of an encoder.

    Raises:
        ValueError: the tokenizer has no such tokens; and from the layout, more texts than an encoder reads.
    """
    if not causal:
        return lambda example: [_framed(words, texts, example) for texts in example.rows]
    if START not in words.controls:
        raise ValueError(f"the tokenizer {words.name!r} has no tokens around texts; {words.name}{TASK} has them")
    start, delimiter, extract = (np.asarray([words.controls[t]], np.int32) for t in (START, DELIMITER, EXTRACT))

    def rows(example: Example) -> list[Row]:
        found = []
        for texts in example.rows:
            parts = [part for ids in words.encode_batch(texts) for part in (delimiter, ids)]
            found.append(Row(np.concatenate([start, *parts[1:], extract])))
        return found

    return rows


def _framed(words: Tokenizer, texts: Sequence[str], example: Example) -> Row:
    if len(texts) > 2:
        raise ValueError(f"{example.where}: an encoder reads one text or two, and not {len(texts)}")
    return Row(*words.framed(*texts))


def _rows(example: Example, layout: Layout, room: int, form: Form, skipped: Skipped) -> list[Scored]:
    """The rows of an example, with rows of padding for choices that it lacks; none if it does not fit."""
    found = layout(example)
    if (longest := max(len(row.ids) for row in found)) > room:
        skipped.skip(example.where, f"its {longest} tokens do not fit config.train.sequence_length={room}")
        return []
    share = 1 / len(found)  # of the example's auxiliary loss
    rows = [scored(row.ids, room, example.label, share / (len(row.ids) - 1), row.types) for row in found]
    nothing = np.zeros(0, np.int32)
    absent = scored(nothing, room, 0, types=None if found[0].types is None else nothing)
    return rows + [absent] * (form.rows - len(rows))
