"""Direct preference optimisation (arXiv 2305.18290): from pairs of answers to a policy, without a reward model.

The policy begins with the weights of ``config.start``; so does the reference, which does not change. An answer is a
row, and the two rows of a pair lie together. Only the tokens of the dialogue's last answer count, with its end of turn.
"""

import itertools
from typing import Any

import numpy as np

from scaling.config import schema as cfg
from scaling.config.refusal import must_be_multiple, refused
from scaling.data.batch import Batch
from scaling.data.chat import comparisons
from scaling.data.chat.dialogues import Skipped
from scaling.data.chat.rows import Text, fitting
from scaling.data.chat.template import Chat, read_template, shortened
from scaling.data.chat_tokenizer import SUFFIX
from scaling.data.rows import Rows, split
from scaling.data.tokenizer import Tokenizer
from scaling.objectives.dpo import dpo
from scaling.train.recipe import Recipe
from scaling.train.run import Data, Run

Pair = list[Batch]  # the rows of the chosen and of the rejected answer


def data(config: cfg.Config, words: Tokenizer) -> Data:
    """Pairs of ``config.data.train``; held out are all pairs of some comparisons.

    Raises:
        FileNotFoundError, ValueError: as ``comparisons.read``, or rows that would part a pair.
    """
    room = config.train.sequence_length
    for name in ("train.microbatch_sequences", "eval.batch_sequences"):
        section, knob = name.split(".")
        must_be_multiple(name, getattr(getattr(config, section), knob), 2, "2, the rows of a pair")
    if config.eval.tokens < 2 * room:
        raise refused("eval.tokens", config.eval.tokens, f"must hold a pair, which is two rows of {room} tokens")
    skipped = Skipped(refuses=config.data.bad_records == "error")
    chat = Chat(words, read_template(config.chat.template))

    def compared(pattern: str) -> list[list[Pair]]:
        read = comparisons.read(pattern, skipped, config.align.completions, config.chat.system)
        found = [made for comparison in read if (made := pairs(comparison, chat, config, skipped))]
        if not found:
            raise ValueError(f"{pattern}: no pair fits config.train.sequence_length={room}")
        return found

    training, validation = split(config.data, compared)
    skipped.summary()
    held_out = [row for made in validation for pair in made for row in pair]
    return Data(Rows.of(list(itertools.chain.from_iterable(training)), config, group=2), held_out, None)


def pairs(comparison: comparisons.Comparison, chat: Chat, config: cfg.Config, skipped: Skipped) -> list[Pair]:
    """The pairs of a comparison, all or that of the best and the worst completion (``config.dpo.pairs``).

    A prompt that is too long for its longest answer loses its oldest turns, for all of its answers.

    Args:
        comparison: its completions must answer the same prompt.
        chat: renders it.
        config: resolved.
        skipped: names what is left out: different prompts, what the template refuses, completions that do not
            fit, ties, equal completions.
    """
    if any(answer[:-1] != comparison.answers[0][:-1] for answer in comparison.answers):
        skipped.skip(comparison.where, "its completions answer different prompts")
        return []
    where, room = comparison.where, config.train.sequence_length
    try:
        found, lost = _fitting(comparison, chat, room)
    except ValueError as error:
        skipped.skip(where, str(error))
        return []
    if len({rank for _, rank in found}) < 2:
        skipped.note(where, f"left out: fewer than two completions of different ranks fit {room} tokens")
        return []
    if len(found) < len(comparison.answers):
        skipped.note(where, f"completions are left out, to fit {room} tokens")
    if lost:
        skipped.note(where, f"the oldest turns of its prompt are left out, to fit {room} tokens")
    found.sort(key=lambda answer: answer[1])
    if config.dpo.pairs == "best_worst":
        found = [found[0], found[-1]]
    either = list(itertools.combinations(found, 2))
    made = [[row(better, room), row(worse, room)] for (better, first), (worse, last) in either if first < last]
    if len(made) < len(either):
        skipped.note(where, "completions that tie make no pair")
    different = [pair for pair in made if not np.array_equal(pair[0].targets, pair[1].targets)]
    if len(different) < len(made):
        skipped.note(where, "completions that are equal make no pair")
    return different


def _fitting(comparison: comparisons.Comparison, chat: Chat, room: int) -> tuple[list[tuple[Text, float]], int]:
    """The completions that fit, with their ranks, and how many of the prompt's oldest turns all of them lose for it."""
    fits = [fitting(answer, chat, room) for answer in comparison.answers]
    lost = max((turns for text, turns in fits if text is not None), default=0)
    found = []
    for answer, rank, (text, turns) in zip(comparison.answers, comparison.ranks, fits, strict=True):
        if text is None:
            continue
        if turns < lost:  # another answer is longer
            kept, _ = next(itertools.islice(shortened(answer), lost, None))
            text = Text(*chat.example(kept))
        found.append((text, rank))
    return found, lost


def row(text: Text, room: int) -> Batch:
    """The row of a dialogue: arrays [room], with the weight 1 at the tokens of its last answer, its end included."""
    end = int(np.flatnonzero(text.counts)[-1])
    first = int(np.flatnonzero(~text.counts[:end])[-1]) + 1
    tokens, targets, weights = np.zeros(room, np.int32), np.zeros(room, np.int32), np.zeros(room, np.float32)
    tokens[:end], targets[:end] = text.ids[:end], text.ids[1 : end + 1]
    weights[first - 1 : end] = 1
    return Batch(tokens, targets, weights)


def reference(run: Run) -> Any:
    """The parameters that the policy began with, read again from ``config.start``, also when a run is resumed.

    Raises:
        ValueError: the checkpoint is gone or has changed.
    """
    assert run.start
    return run.start.params(run.config.model, run.mesh, run.config.seed, run.config.align.layers)


RECIPE = Recipe("align dpo", data, dpo, suffix=SUFFIX, counts_epochs=True, unit="nats a pair", frozen=reference)
