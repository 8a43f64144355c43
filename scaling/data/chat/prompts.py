"""Records of prompts, which a model is to answer, in the shapes that people have."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from scaling.data.chat.dialogues import Skipped, asked, check_asked, messages_of, usable, with_system


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What is to be answered.

    Attributes:
        messages: with "role" and "content"; the last one is the user's.
        record: the whole object that it was read from, for what a reward looks up, such as "answer".
        where: it was found, as ``FILE:LINE``.
    """

    messages: tuple[dict[str, str], ...]
    record: dict[str, Any]
    where: str


def read(pattern: str, skipped: Skipped, system: str = "") -> Iterator[Prompt]:
    """The prompts of JSON Lines files.

    A record is ``{"prompt"}``, ``{"instruction", "input"}``, where "input" may be absent or empty, or ``{"messages"}``
    (or "conversations"), a dialogue whose last message is the user's. It may have other fields.

    Args:
        pattern: a path or glob.
        skipped: where faulty records go.
        system: system message of prompts that have none; empty = none.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file or record that cannot be used, with its line.
    """

    def prompt(record: dict[str, Any], where: str) -> Prompt:
        messages = with_system(messages_asked(record, where), system)
        check_asked(messages)
        return Prompt(tuple(messages), record, where)

    return usable(pattern, skipped, "prompt", prompt)


def messages_asked(record: dict[str, Any], where: str) -> list[dict[str, str]]:
    """The messages of a record in any of the shapes that ``read`` knows, unchecked.

    Raises:
        FaultyRecord: they are no messages.
        ValueError: it is no record of a prompt.
    """
    if "messages" in record or "conversations" in record:
        return messages_of(record, where)
    text = asked(record, where)
    if text is None:
        keys = ", ".join(record) or "none"
        raise ValueError(f"{where}: a record must have prompt, messages, or instruction; its keys are {keys}")
    return [{"role": "user", "content": text}]
