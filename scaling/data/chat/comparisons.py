"""Records in which people compared completions of a prompt, in the shapes that people have."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

from scaling.data import sources
from scaling.data.chat.dialogues import FaultyRecord, Skipped, asked, check_answered, messages_of, usable, with_system
from scaling.data.chat.template import ASSISTANT

_TURN = re.compile(r"\n\n(Human|Assistant):[ ]?")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Answers to one prompt.

    Attributes:
        answers: whole dialogues that end with the assistant, each a tuple of messages.
        ranks: of the answers, 1 = best; equal ones are ties.
        where: it was found, as ``FILE:LINE``.
    """

    answers: tuple[tuple[dict[str, str], ...], ...]
    ranks: tuple[float, ...]
    where: str


def read(pattern: str, skipped: Skipped, most: int, system: str = "") -> Iterator[Comparison]:
    """The comparisons of JSON Lines files.

    A record is a pair, ``{"prompt", "chosen", "rejected"}``, or ``{"chosen", "rejected"}`` of whole dialogues (lists of
    messages, or texts of the form ``\\n\\nHuman: ...\\n\\nAssistant: ...``); or a ranking,
    ``{"prompt", "completions", "ranks"}``, with "scores" in the place of "ranks" where more is better. In the place of
    "prompt" there may be "instruction" and "input", or "messages", a dialogue that the completions continue.

    Args:
        pattern: a path or glob.
        skipped: where faulty records go: one completion, all ties, an empty one.
        most: completions of a prompt.
        system: system message of dialogues that have none; empty = none.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file or record that cannot be used, with its line.
    """

    def comparison(record: dict[str, Any], where: str) -> Comparison:
        answers, ranks = _answers(record, where)
        if len(answers) > most:
            raise ValueError(
                f"{where}: {len(answers)} completions of a prompt are more than config.align.completions={most}"
            )
        framed = tuple(tuple(with_system(messages, system)) for messages in answers)
        for messages in framed:
            check_answered(list(messages))
        if len(set(ranks)) < 2:
            raise FaultyRecord("all completions are ties" if len(ranks) > 1 else "there is only one completion")
        return Comparison(framed, tuple(ranks), where)

    return usable(pattern, skipped, "comparison", comparison)


def _answers(record: dict[str, Any], where: str) -> tuple[list[list[dict[str, str]]], list[float]]:
    if "chosen" in record and "rejected" in record:
        return [_whole(record, record[key], where) for key in ("chosen", "rejected")], [1, 2]
    if "completions" in record and ("ranks" in record or "scores" in record):
        completions = record["completions"]
        if not isinstance(completions, list) or not completions:
            raise FaultyRecord("completions is empty or no list")
        ranks = _numbers(record, "ranks" if "ranks" in record else "scores", len(completions))
        better = ranks if "ranks" in record else [-score for score in ranks]
        return [_whole(record, completion, where) for completion in completions], better
    raise ValueError(
        f"{where}: a comparison must have chosen and rejected, or completions and ranks; its keys are "
        f"{', '.join(record) or 'none'}"
    )


def _numbers(record: dict[str, Any], key: str, count: int) -> list[float]:
    values = record[key]
    if not isinstance(values, list) or len(values) != count:
        raise FaultyRecord(f"{key} must be a list with a number for each of the {count} completions")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise FaultyRecord(f"{key} holds {value!r}, which is no number")
    return [float(value) for value in values]


def _whole(record: dict[str, Any], answer: Any, where: str) -> list[dict[str, str]]:
    """The dialogue that ends with an answer."""
    if isinstance(answer, list):
        return messages_of({"messages": answer}, where)
    text = sources.text_of(answer, "a completion", where)
    if "messages" in record:
        return [*messages_of(record, where), {"role": ASSISTANT, "content": text}]
    if (prompt := asked(record, where)) is not None:
        return [{"role": "user", "content": prompt}, {"role": ASSISTANT, "content": text}]
    parts = _TURN.split(text)
    if len(parts) < 3 or parts[0].strip():
        raise FaultyRecord("a text without a prompt must begin with a line 'Human: ...'")
    roles = {"Human": "user", "Assistant": ASSISTANT}
    return [
        {"role": roles[role], "content": content.strip()}
        for role, content in zip(parts[1::2], parts[2::2], strict=True)
    ]
