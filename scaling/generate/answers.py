"""Answers of a model to many prompts at once, by its chat template."""

import dataclasses
from collections.abc import Sequence

from scaling.data.chat.dialogues import Skipped
from scaling.data.chat.prompts import Prompt
from scaling.data.chat.template import Chat
from scaling.generate.conversation import Prompt as Framed
from scaling.generate.conversation import prompt_of
from scaling.generate.generator import Completion, Generator
from scaling.generate.sampling import Sampling


class Answers:
    """A model that answers prompts, as in a conversation (``generate.conversation``).

    Args:
        generator: the model, with its tokenizer.
        chat: its template.
        sampling: of answers; ``num_samples`` to a prompt. What ends them is the template's.
        batch_size: answers that are computed at a time, a power of two.
    """

    def __init__(self, generator: Generator, chat: Chat, sampling: Sampling, batch_size: int = 8) -> None:
        assert generator.words is not None
        self.generator, self._chat, self.batch_size = generator, chat, batch_size
        self.sampling = dataclasses.replace(sampling, end_ids=(chat.end, generator.words.eot))
        self._noted = Skipped(refuses=False)

    def framed(self, prompt: Prompt) -> Framed:
        """What the model reads of a prompt.

        Raises:
            NoRoom: its last turn alone leaves no room for an answer.
            ValueError: the template refuses it.
        """
        return prompt_of(self._chat, prompt.messages, self.generator.config.context_length, self.sampling.tokens)

    def read(self, prompts: Sequence[Prompt]) -> list[Framed]:
        """What the model reads of each prompt; the oldest turns of a long dialogue are left out, aloud.

        Raises:
            ValueError: a prompt that cannot be answered; the message names it.
        """
        found = []
        for prompt in prompts:
            try:
                found.append(self.framed(prompt))
            except ValueError as error:
                raise ValueError(f"{prompt.where}: {error}") from None
            if found[-1].forgotten:
                self._noted.note(prompt.where, "the model reads it without its oldest turns, to leave room to answer")
        return found

    def __call__(self, prompts: Sequence[Prompt], numbers: Sequence[int] | None = None) -> list[list[Completion]]:
        """For each prompt ``num_samples`` answers.

        Args:
            prompts: to be answered.
            numbers: as of ``Generator.generate``.

        Raises:
            ValueError: as ``read``.
        """
        framed = self.read(prompts)
        found: list[list[Completion]] = [[] for _ in prompts]
        drawn = range(len(prompts)) if numbers is None else numbers
        for room in sorted({each.room for each in framed}):
            chosen = [i for i, each in enumerate(framed) if each.room == room]
            sampling = dataclasses.replace(self.sampling, tokens=room)
            ids, seeds = [framed[i].ids for i in chosen], [drawn[i] for i in chosen]
            for i, answers in zip(chosen, self.generator.generate(ids, sampling, self.batch_size, seeds), strict=True):
                found[i] = answers
        return found
