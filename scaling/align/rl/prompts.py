"""Prompts as the rows of an iteration, each with the pre-training text that is learned beside its answer."""

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from scaling.config import schema as cfg
from scaling.config.refusal import must_be_multiple, must_divide, refused
from scaling.data import loader
from scaling.data.chat import prompts
from scaling.data.chat.dialogues import Skipped
from scaling.data.chat.template import Chat, read_template
from scaling.data.rows import Rows, split
from scaling.data.tokenizer import Tokenizer
from scaling.generate.conversation import NoRoom, prompt_of
from scaling.train.run import Data

_LARGEST_SHARE = 5  # of ``advantages.next_kl``, whose errors are clipped to a fifth


class Row(NamedTuple):
    """A prompt that is to be answered once, as NumPy arrays.

    Attributes:
        tokens: ids, padded at the front, int32 [P].
        start: first slot that is not padding, int32 [].
        number: of the prompt, int32 [].
        pretraining: sequences of pre-training text, int32 [rows, T + 1]; None = none.
    """

    tokens: np.ndarray
    start: np.ndarray
    number: np.ndarray
    pretraining: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Stream:
    """Endless stream of rows; the answers of a prompt are asked for one after the other.

    Attributes:
        rows: of prompts alone.
        prompts: what the rows' numbers mean; those of the validation come last.
        text: sequences of pre-training text by index; None = none.
        each: of these for each row.
    """

    rows: Rows
    prompts: tuple[prompts.Prompt, ...]
    text: Any = None
    each: int = 1

    @property
    def sequences(self) -> int:
        return self.rows.sequences

    @property
    def tokens(self) -> int:
        return self.rows.tokens

    @property
    def fingerprint(self) -> str:
        return self.rows.fingerprint + (self.text.fingerprint if self.text else "")

    def __getitem__(self, i: int) -> Row:
        """Row i, for any i >= 0."""
        row: Row = self.rows[i]
        if self.text is None:
            return row
        return row._replace(pretraining=np.stack([self.text[i * self.each + j] for j in range(self.each)]))


def data(config: cfg.Config, words: Tokenizer) -> Data:
    """The prompts of ``config.data.train``, and of ``config.data.validation`` or a held-out fraction.

    A prompt that leaves less than ``config.rl.response_tokens`` of a row loses its oldest turns, aloud; if the last
    turn alone is too long, it is left out, aloud.

    Raises:
        FileNotFoundError, ValueError: as ``prompts.read``, or nothing fits.
    """
    rl, room = config.rl, config.train.sequence_length
    skipped = Skipped(refuses=config.data.bad_records == "error")
    chat = Chat(words, read_template(config.chat.template))
    numbered: list[prompts.Prompt] = []

    def read(pattern: str) -> list[Row]:
        found = fitted(prompts.read(pattern, skipped, config.chat.system), chat, config, skipped, numbered)
        if not found:
            raise ValueError(
                f"{pattern}: no prompt leaves room for config.rl.response_tokens={rl.response_tokens} in "
                f"config.train.sequence_length={room}"
            )
        return found

    training, held_out = split(config.data, read)
    skipped.summary()
    items: list[Any] = [[row] * rl.samples for row in training] if rl.samples > 1 else training
    text = None
    if rl.pretraining:
        text = loader.training_set(pretraining(config), words, room, config.seed)
    return Data(Stream(Rows.of(items, config, rl.samples), tuple(numbered), text, rl.pretraining_rows), held_out, None)


def fitted(
    found: Iterable[prompts.Prompt], chat: Chat, config: cfg.Config, skipped: Skipped, numbered: list[prompts.Prompt]
) -> list[Row]:
    """The rows of prompts that leave room for an answer of ``config.rl.response_tokens``.

    Args:
        found: prompts.
        chat: renders them.
        config: resolved.
        skipped: names the prompts that lose turns or are left out.
        numbered: prompts by number, to which these are added.
    """
    room, answer, rows = config.train.sequence_length, config.rl.response_tokens, []
    for prompt in found:
        ids = _fitting(prompt, chat, room, answer, skipped)
        if ids is not None:
            rows.append(_row(ids, room - answer, len(numbered)))
            numbered.append(prompt)
    return rows


def pretraining(config: cfg.Config) -> cfg.Data:
    """The pre-training text as the data of a config; a fraction of it is held out, whatever ``data.validation`` is."""
    return dataclasses.replace(config.data, train=config.rl.pretraining, mixture=(), validation="")


def check(config: cfg.Config, critic: bool) -> None:
    """Refuses knobs that exclude each other in learning from rewards.

    Args:
        config: resolved.
        critic: PPO, with a value function; without it GRPO, which compares the answers to a prompt.

    Raises:
        ValueError: with the knob.
    """
    rl, room = config.rl, config.train.sequence_length
    if not rl.reward:
        raise refused("rl.reward", rl.reward, "must name what scores answers: a run, FILE.py:FUNCTION, or exact_match")
    if rl.response_tokens >= room:
        right = f"must be less than config.train.sequence_length={room}, which holds the prompt too"
        raise refused("rl.response_tokens", rl.response_tokens, right)
    if not critic and rl.samples < 2:
        raise refused("rl.samples", rl.samples, "must be at least 2: an answer is compared with its group")
    answers = config.train.batch_tokens // room
    must_divide("rl.minibatches", rl.minibatches, "train.batch_tokens / config.train.sequence_length", answers)
    each = answers // rl.minibatches
    must_be_multiple(
        "train.batch_tokens", each, rl.samples, f"config.rl.samples={rl.samples} answers of a prompt, by minibatch"
    )
    micro = min(config.train.microbatch_sequences, each)
    must_divide("train.microbatch_sequences", micro, "train.batch_tokens by minibatch", each)
    shards = config.mesh.shards
    must_be_multiple("train.batch_tokens", each, shards, f"the {shards} shards of the batch, in answers by minibatch")
    if rl.kl_target and answers >= _LARGEST_SHARE * rl.kl_horizon:
        right = f"must be more than {answers / _LARGEST_SHARE:g}, or one iteration of {answers} answers could turn the "
        raise refused("rl.kl_horizon", rl.kl_horizon, right + "coefficient of the divergence negative")
    if not config.optimizer.peak_lr:
        raise refused("optimizer.peak_lr", 0.0, "must be more than 0")
    for name in ("dropout_embedding", "dropout_attention", "dropout_residual"):
        if rate := getattr(config.model, name):
            raise refused(f"model.{name}", rate, "must be 0: answers are drawn without dropout")
    if 0 < config.model.segment_length < room:
        right = f"must be 0 or at least {room}: answers are drawn with what comes before them as one segment"
        raise refused("model.segment_length", config.model.segment_length, right)
    for name in ("stage", "context"):
        if size := getattr(config.mesh, name) - 1:
            raise refused(f"mesh.{name}", size + 1, "must be 1: answers are drawn on the mesh of the training")
    if config.train.ramp_tokens:
        raise refused("train.ramp_tokens", config.train.ramp_tokens, "must be 0: an iteration is one batch of answers")
    if config.guard.recompute_every_steps:
        raise refused("guard.recompute_every_steps", config.guard.recompute_every_steps, "must be 0 here")


def _fitting(prompt: prompts.Prompt, chat: Chat, room: int, answer: int, skipped: Skipped) -> np.ndarray | None:
    """The ids of a prompt that leaves room for an answer; None if its last turn does not, or it is refused."""
    try:
        found = prompt_of(chat, prompt.messages, room, answer)
    except NoRoom:
        found = None
    except ValueError as error:
        skipped.skip(prompt.where, str(error))
        return None
    if found is None or found.room < answer:
        skipped.note(prompt.where, f"left out: its last turn leaves no {answer} of {room} tokens for the answer")
        return None
    if found.forgotten:
        skipped.note(prompt.where, f"its oldest turns are left out, to have {answer} of {room} tokens for the answer")
    return found.ids


def _row(ids: np.ndarray, room: int, number: int) -> Row:
    tokens = np.zeros(room, np.int32)
    tokens[room - len(ids) :] = ids
    return Row(tokens, np.asarray(room - len(ids), np.int32), np.asarray(number, np.int32))
