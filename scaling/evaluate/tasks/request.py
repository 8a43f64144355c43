"""An item of a task, as fields, as texts, and as the request that a model answers."""

import dataclasses
import re

from scaling.evaluate.tasks.templates import Fields, render


@dataclasses.dataclass(frozen=True)
class Item:
    """A record as the fields that templates use.

    Attributes:
        id: 'test/17': its split and its place there, from 0.
        where: file and line, for messages.
    """

    id: str
    where: str
    fields: Fields

    def text(self, template: str) -> str:
        """The template with this item's fields."""
        return render(template, self.fields, self.where)

    def texts(self, spec: str | tuple[str, ...]) -> list[str]:
        """Of several templates, or of a field that is a list, by its name.

        Raises:
            ValueError: the field is no list.
        """
        if isinstance(spec, tuple):
            return [self.text(template) for template in spec]
        value = self.fields[spec]
        if isinstance(value, str):
            raise ValueError(f"{self.where}: {spec!r} must be a list of texts, not {value[:40]!r}")
        return value

    def not_empty(self, texts: list[str], key: str) -> list[str]:
        """The texts, which a key of the task gave.

        Raises:
            ValueError: one is empty.
        """
        for place, text in enumerate(texts):
            if not text.strip():
                which = f"text {place} of {key}, from 0," if len(texts) > 1 else key
                raise ValueError(f"{self.where}: {which} is empty; an empty text cannot be scored")
        return texts


@dataclasses.dataclass(frozen=True)
class Option:
    """One candidate: its likelihood is that of ``completion`` after ``context``."""

    context: str
    completion: str


@dataclasses.dataclass(frozen=True)
class Rendered:
    """An item as text, without description and demonstrations.

    Attributes:
        options: the candidates; empty where the answer is generated or there is none.
        gold: place of the right option.
        target: the answer as a demonstration shows it, with the space before it.
        references: accepted answers, where the answer is generated.
        kept: what the kind of task needs to judge the answer.
    """

    context: str
    options: tuple[Option, ...] = ()
    gold: int = 0
    target: str = ""
    references: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Request:
    """One item with its demonstrations, ready to be answered. Texts only: who answers it tokenizes.

    Attributes:
        id: of the item.
        context: the whole prompt, with description and demonstrations; so is that of an ``Option``.
        options, gold, target, references, kept: as in ``Rendered``.
        turns: in a dialogue, what the user and the assistant say by turns, demonstrations first and the item last;
            empty where the context is read as running text.
        shots: demonstrations in the context.
        demonstrations: their ids.
        fits: whether it fits the context length at least without demonstrations. Running text always does.
        where: file and line of the item, for messages.
    """

    id: str
    task: str
    context: str
    options: tuple[Option, ...]
    gold: int
    target: str
    references: tuple[str, ...]
    shots: int
    demonstrations: tuple[str, ...]
    fits: bool
    metadata: dict[str, str]
    where: str
    turns: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


def completion_after(context: str, text: str) -> str:
    """A completion with the space before it; after an empty context there is none.

    Contexts end without white space, so the space belongs to the first token of the completion, as in GPT-2's
    vocabulary.
    """
    return f" {text}" if context else text


def with_space(completion: str, context: str) -> str:
    """As ``completion_after``, in the middle of a sentence.

    There is no space before what is written without one there: ``'s``, a comma, a full stop.
    """
    joined = re.match(r"[,.;:!?)]|'((s|d|ll|ve|re|t|m)\b|\s)", completion)
    return completion if joined else completion_after(context, completion)
