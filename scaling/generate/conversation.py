"""A conversation with a model: replies that grow, and a memory that loses its oldest turns when the context is full."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from scaling.data.chat.template import ASSISTANT, Chat, Message, shortened
from scaling.generate.generator import Completion, Generator
from scaling.generate.sampling import Sampling


class Prompt(NamedTuple):
    """What the model reads.

    Attributes:
        ids: int32 [n].
        forgotten: messages that were left out, the oldest after the system's.
        room: tokens that the reply may have.
    """

    ids: np.ndarray
    forgotten: int
    room: int


class NoRoom(ValueError):
    """The last turn alone leaves no room for an answer."""


def prompt_of(chat: Chat, messages: Sequence[Message], context: int, tokens: int) -> Prompt:
    """The ids of a dialogue, without as many of its oldest turns as must be left out for a reply of ``tokens``.

    Turns are those of ``shortened``.

    Args:
        chat: renders dialogues.
        messages: the last one is not the assistant's.
        context: positions of the model.
        tokens: of the reply; fewer if the last turn alone leaves less room.

    Raises:
        NoRoom: the last turn alone leaves no room for a token.
        ValueError: the template refuses the dialogue.
    """
    for kept, forgotten in shortened(messages):
        ids = chat.prompt(kept)
        if len(ids) + tokens <= context:
            return Prompt(ids, forgotten, tokens)
    room = context - len(ids)
    if room < 1:
        raise NoRoom(f"the message has {len(ids)} tokens with its frame, and the model reads at most {context - 1}")
    return Prompt(ids, forgotten, room)


class Conversation:
    """Remembers what was said.

    Args:
        generator: the model.
        chat: its template.
        sampling: of replies; what ends them is the template's.
        system: system message; empty = none.
    """

    def __init__(self, generator: Generator, chat: Chat, sampling: Sampling, system: str = "") -> None:
        assert generator.words is not None
        self._generator, self._chat, self._system = generator, chat, system
        self._sampling = dataclasses.replace(sampling, end_ids=(chat.end, generator.words.eot))
        self.messages: list[dict[str, str]] = []
        self.reset()

    def reset(self) -> None:
        """Forgets everything but the system message."""
        self.messages = [{"role": "system", "content": self._system}] if self._system else []

    def reply(self, text: str, every: int = 4) -> Iterator[tuple[Completion, int]]:
        """Says a text, and yields the reply as it grows, with the number of messages that were left out.

        The reply is remembered as far as it was taken, also if the caller stops in the middle.

        Raises:
            ValueError: as ``prompt_of``; the text is not remembered then.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        config = self._generator.config
        prompt = prompt_of(self._chat, messages, config.context_length, self._sampling.tokens)
        sampling = dataclasses.replace(self._sampling, tokens=prompt.room)
        self.messages = messages
        said = ""
        try:
            for completion in self._generator.stream(prompt.ids, sampling, every):
                said = completion.text
                yield completion, prompt.forgotten
        finally:
            self.messages.append({"role": ASSISTANT, "content": said})
