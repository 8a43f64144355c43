"""Records of dialogues, in the shapes that people have, as lists of messages."""

import collections
import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from scaling.data import sources
from scaling.data.chat.template import ASSISTANT

log = logging.getLogger(__name__)

ROLES = ("system", "user", ASSISTANT, "tool")
_NAMES = {"human": "user", "gpt": ASSISTANT, "prompter": "user", "bot": ASSISTANT}  # of other data sets
_Made = TypeVar("_Made")
_NAMED = 5  # records in the log that were skipped for one reason


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """Messages with "role" and "content", where they were found, as ``FILE:LINE``, and the object there."""

    messages: tuple[dict[str, str], ...]
    where: str
    record: dict[str, Any] = dataclasses.field(default_factory=dict)

    def say(self, text: str) -> str:
        """A sentence about it."""
        return f"{self.where}: {text}"


class Skipped:
    """Counts what is left out of the data, and names the first few records of each reason.

    Args:
        refuses: raise the first instead.
        choice: what the user sets so that nothing is refused, for the message; empty = there is no such choice.
    """

    def __init__(self, refuses: bool, choice: str = "config.data.bad_records=skip") -> None:
        self.refuses, self._choice = refuses, choice
        self.counts: collections.Counter[str] = collections.Counter()

    def skip(self, where: str, reason: str) -> None:
        """Leaves a record out.

        Raises:
            ValueError: nothing may be left out.
        """
        if self.refuses:
            hint = f", or set {self._choice}" if self._choice else ""
            raise ValueError(f"{where}: {reason}; mend it{hint}")
        self.note(where, reason)

    def note(self, where: str, reason: str) -> None:
        """Counts a record that is used only in part, or whose fault is none of the user's."""
        self.counts[reason] += 1
        if self.counts[reason] <= _NAMED:
            log.warning("%s: %s", where, reason)

    def summary(self) -> None:
        """Logs how many there were of each reason that was named for some only."""
        for reason, count in self.counts.items():
            if count > _NAMED:
                log.warning("%d records in all: %s", count, reason)


def read(pattern: str, skipped: Skipped, system: str = "") -> Iterator[Dialogue]:
    """The dialogues of JSON Lines files, each ending with the assistant.

    A record is ``{"messages": [{"role", "content"}, ...]}``, ``{"conversations": [{"from", "value"}, ...]}``,
    ``{"prompt", "response"}`` (or "completion"), or ``{"instruction", "input", "output"}``, where "input" may be empty.

    Args:
        pattern: a path or glob.
        skipped: where faulty records go.
        system: system message of dialogues that have none; empty = none.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file or record that cannot be used, with its line.
    """

    def dialogue(record: dict[str, Any], where: str) -> Dialogue:
        messages = with_system(messages_of(record, where), system)
        check_answered(messages)
        return Dialogue(tuple(messages), where, record)

    return usable(pattern, skipped, "dialogue", dialogue)


def usable(
    pattern: str, skipped: Skipped, kind: str, made_of: Callable[[dict[str, Any], str], _Made]
) -> Iterator[_Made]:
    """What is made of the records of JSON Lines files, without the faulty ones.

    Args:
        pattern: a path or glob.
        skipped: where faulty records go.
        kind: of what is made, for the message.
        made_of: makes it of a record and its place; raises FaultyRecord for one that may be skipped.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that cannot be read, no record that can be used, or as ``made_of``.
    """
    found = False
    for where, record in sources.records(sources.find(pattern)):
        try:
            made = made_of(record, where)
        except FaultyRecord as fault:
            skipped.skip(where, str(fault))
            continue
        found = True
        yield made
    if not found:
        raise ValueError(f"{pattern}: no {kind} in it can be used")


class FaultyRecord(Exception):
    """A record that may be skipped; the message says why."""


def messages_of(record: dict[str, Any], where: str) -> list[dict[str, str]]:
    """The messages of a record in any of the shapes that ``read`` knows."""
    if "messages" in record or "conversations" in record:
        listed = record.get("messages", record.get("conversations"))
        if not isinstance(listed, list) or not listed:
            raise FaultyRecord("the list of messages is empty or no list")
        return [_message(each, where) for each in listed]
    asked, answered = _pair(record, where)
    return [{"role": "user", "content": asked}, {"role": ASSISTANT, "content": answered}]


def _pair(record: dict[str, Any], where: str) -> tuple[str, str]:
    for prompt, response in (("prompt", "response"), ("prompt", "completion"), ("instruction", "output")):
        if prompt in record and response in record:
            return asked(record, where) or "", _text(record, response, where)
    keys = ", ".join(record) or "none"
    raise ValueError(
        f"{where}: a record must have messages, conversations, prompt and response, or instruction and output; "
        f"its keys are {keys}"
    )


def asked(record: dict[str, Any], where: str) -> str | None:
    """The text of "prompt", or of "instruction" and "input"; None if the record has neither."""
    if "prompt" in record:
        return _text(record, "prompt", where)
    if "instruction" not in record:
        return None
    more = _text(record, "input", where) if record.get("input") else ""
    return _text(record, "instruction", where) + (f"\n\n{more}" if more else "")


def _text(record: dict[str, Any], key: str, where: str) -> str:
    return sources.text_of(record[key], key, where)


def _message(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise FaultyRecord("a message is no object")
    role, content = value.get("role", value.get("from")), value.get("content", value.get("value"))
    role = _NAMES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise FaultyRecord(f"the role {role!r} is none of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise FaultyRecord("a message has no text")
    return {"role": role, "content": sources.text_of(content, "content", where)}


def with_system(messages: list[dict[str, str]], system: str) -> list[dict[str, str]]:
    """The messages, after a system message if they have none and there is one."""
    if not system or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


def check_answered(messages: list[dict[str, str]]) -> None:
    """Refuses dialogues that teach nothing: each turn of the assistant answers something, and the last is one."""
    roles = [message["role"] for message in messages]
    if ASSISTANT not in roles:
        raise FaultyRecord("no turn is the assistant's")
    if roles[-1] != ASSISTANT:
        raise FaultyRecord("the last turn is not the assistant's")
    _check_turns(messages)


def check_asked(messages: list[dict[str, str]]) -> None:
    """Refuses dialogues that cannot be answered: the last message must be the user's, and those before it in order."""
    if messages[-1]["role"] != "user":
        raise FaultyRecord("the last message is not the user's")
    _check_turns(messages)


def _check_turns(messages: list[dict[str, str]]) -> None:
    roles = [message["role"] for message in messages]
    if roles.count("system") > (roles[0] == "system"):
        raise FaultyRecord("a system message must be the first, and the only one")
    for before, role in zip(["system", *roles], roles, strict=False):
        if role == ASSISTANT and before in ("system", ASSISTANT):
            fault = "follow one another" if before == ASSISTANT else "answer nothing"
            raise FaultyRecord(f"turns of the assistant {fault}")
    if any(m["role"] == ASSISTANT and not m["content"].strip() for m in messages):
        raise FaultyRecord("a response is empty")
    if any(m["role"] == "user" and not m["content"].strip() for m in messages):
        raise FaultyRecord("a prompt is empty")
