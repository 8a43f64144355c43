"""The reward model (InstructGPT, arXiv 2203.02155, section 3.5): a decoder whose output is one number, for a dialogue.

It begins with the weights of ``config.start``; a head takes the place of the output projection. Each completion is a
row, which is read at the end of its last turn. ``reward.json`` in the run directory holds a bias, which makes the mean
reward of demonstrations 0.
"""

import itertools
import logging
from collections.abc import Sequence

import numpy as np

from scaling.align.score import Scorer, write_bias
from scaling.config import schema as cfg
from scaling.config.refusal import must_be_multiple
from scaling.data.batch import Scored, scored
from scaling.data.chat import comparisons, dialogues
from scaling.data.chat.dialogues import Skipped
from scaling.data.chat.template import Chat, read_template
from scaling.data.chat_tokenizer import SUFFIX
from scaling.data.rows import Rows, split
from scaling.data.tokenizer import Tokenizer
from scaling.objectives.ranking import ranking
from scaling.train.recipe import Recipe
from scaling.train.run import Data, Run
from scaling.train.state import TrainState

log = logging.getLogger(__name__)


def data(config: cfg.Config, words: Tokenizer) -> Data:
    """Rows of comparisons: for each prompt ``config.align.completions``, some of them padding.

    Raises:
        FileNotFoundError, ValueError: as ``comparisons.read``, or rows that would part a prompt's completions, or
            demonstrations that cannot be used.
    """
    group, room = config.align.completions, config.train.sequence_length
    unit = f"config.align.completions={group}, which belong together"
    must_be_multiple("train.microbatch_sequences", config.train.microbatch_sequences, group, unit)
    must_be_multiple("eval.batch_sequences", config.eval.batch_sequences, group, unit)
    skipped = Skipped(refuses=config.data.bad_records == "error")
    chat = Chat(words, read_template(config.chat.template))

    def prompts(pattern: str) -> list[list[Scored]]:
        read = comparisons.read(pattern, skipped, group, config.chat.system)
        found = [rows for comparison in read if (rows := _rows(comparison, chat, room, group, skipped))]
        if not found:
            raise ValueError(f"{pattern}: no comparison fits config.train.sequence_length={room}")
        return found

    training, validation = split(config.data, prompts)
    skipped.summary()
    if config.align.demonstrations:
        demonstrations(
            config, chat
        )  # they are used after the last step, and a mistake in them is found before the first
    return Data(Rows.of(training, config, group), list(itertools.chain.from_iterable(validation)), None)


def _rows(comparison: comparisons.Comparison, chat: Chat, room: int, group: int, skipped: Skipped) -> list[Scored]:
    """The rows of a prompt; none if fewer than two of its completions fit, these are ties, or the template refuses."""
    try:
        texts = [
            (ending(chat, answer), rank) for answer, rank in zip(comparison.answers, comparison.ranks, strict=True)
        ]
    except ValueError as error:
        skipped.skip(comparison.where, str(error))
        return []
    fitting = [(ids, rank) for ids, rank in texts if len(ids) <= room]
    if len({rank for _, rank in fitting}) < 2:
        skipped.note(comparison.where, f"left out: fewer than two completions of different ranks fit {room} tokens")
        return []
    if len(fitting) < len(texts):
        skipped.note(comparison.where, f"completions are left out, to fit {room} tokens")
    rows = [scored(ids, room, rank) for ids, rank in fitting]
    return rows + [scored(np.zeros(0, np.int32), room, 0)] * (group - len(rows))


def ending(chat: Chat, messages: tuple[dict[str, str], ...]) -> np.ndarray:
    """The ids of a dialogue up to the end of its last turn, at which it is read."""
    ids, said = chat.example(messages)
    return ids[: np.flatnonzero(said)[-1] + 1]


def finish(run: Run, state: TrainState) -> None:
    """Writes the bias, by which demonstrations have the mean reward 0 (section 3.5 of the paper)."""
    config, chat = run.config, Chat(run.words, read_template(run.config.chat.template))
    if path := config.align.demonstrations:
        texts = demonstrations(config, chat)
    else:
        path, texts = "the best completions held out", _best(run.data.held_out, config.align.completions)
    score = Scorer(config.network, run.whole(state["params"]), run.mesh)
    rewards = score(texts, config.train.microbatch_sequences)
    if run.is_first:
        bias = write_bias(run.directory, rewards, path)
        log.info("the mean reward of %d demonstrations is 0 with the bias %.4f", len(texts), bias)


def demonstrations(config: cfg.Config, chat: Chat) -> list[np.ndarray]:
    """The ids of the dialogues of ``config.align.demonstrations`` that fit ``config.model.context_length``.

    Raises:
        FileNotFoundError, ValueError: as ``dialogues.read``, or none fits.
    """
    path, most = config.align.demonstrations, config.model.context_length
    skipped, found = Skipped(refuses=config.data.bad_records == "error"), list[np.ndarray]()
    for dialogue in dialogues.read(path, skipped, config.chat.system):
        try:
            ids = ending(chat, dialogue.messages)
        except ValueError as error:
            skipped.skip(dialogue.where, str(error))
            continue
        if len(ids) <= most:
            found.append(ids)
        else:
            skipped.note(dialogue.where, f"left out of the demonstrations, to fit {most} tokens")
    skipped.summary()
    if not found:
        raise ValueError(f"config.align.demonstrations={path!r}: no dialogue fits the model's {most} tokens")
    return found


def _best(rows: Sequence[Scored], group: int) -> list[np.ndarray]:
    """Ids of the best completion of each prompt; of ties, the first."""
    found = []
    for first in range(0, len(rows), group):
        there = [row for row in rows[first : first + group] if row.reads.any()]
        best = min(there, key=lambda row: float(row.labels.sum()))
        found.append(best.tokens[: int(best.reads.argmax()) + 1])
    return found


RECIPE = Recipe(
    "align reward", data, ranking, 1, suffix=SUFFIX, counts_epochs=True, unit="nats a prompt", finish=finish
)
