"""Generated answers that must satisfy constraints which a program can verify: IFEval."""

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from scaling.evaluate import constraints
from scaling.evaluate.scoring.records import Sample
from scaling.evaluate.tasks.kind import FieldName, Kind, Watch, Writing
from scaling.evaluate.tasks.request import Item, Rendered, Request

if TYPE_CHECKING:
    from scaling.evaluate.scoring.answers import Answers


@dataclasses.dataclass(frozen=True)
class Constraints(Kind):
    """Strict and loose accuracy (Zhou et al., arXiv 2311.07911, section 2.2); answers are greedy.

    Attributes:
        instructions: a list field of names of constraints, ``constraints.IDS``.
        arguments: a list field of as many JSON objects: what each constraint is told.
        stop: texts that end an answer.
        max_tokens: of an answer.
    """

    gives = ("followed",)

    instructions: FieldName
    arguments: FieldName
    stop: tuple[str, ...] = ()
    max_tokens: int = 1280

    @property
    def new_tokens(self) -> int:
        """Those of an answer."""
        return self.max_tokens

    @property
    def demonstrated(self) -> bool:
        """There are no answers to show."""
        return False

    def check(self) -> str:
        """There is at least one token."""
        return "" if self.max_tokens >= 1 else "scoring.max_tokens must be at least 1"

    def render(self, context: str, item: Item) -> Rendered:
        """The prompt, with its constraints as JSON."""
        names, arguments = item.texts(self.instructions), item.texts(self.arguments)
        if not names or len(names) != len(arguments):
            raise ValueError(f"{item.where}: {len(names)} instructions with {len(arguments)} tables of arguments")
        for name, text in zip(names, arguments, strict=True):
            try:
                told = json.loads(text)
                if not isinstance(told, dict):
                    raise ValueError(f"{name}: its arguments must be a table, not {text[:40]}")
                constraints.check(name, told)
            except ValueError as error:
                raise ValueError(f"{item.where}: {error}") from None
        return Rendered(context, kept=tuple(text for pair in zip(names, arguments, strict=True) for text in pair))

    def answer(self, model: "Answers", items: Sequence[Request], watch: Watch) -> tuple[list[Sample], list[str]]:
        """The greedy answer, and which constraints it satisfies."""
        samples = []
        how = Writing(self.max_tokens, self.stop)
        for item, (text,) in zip(items, model.continuations(items, how, watch), strict=True):
            told = [
                (name, json.loads(arguments)) for name, arguments in zip(item.kept[::2], item.kept[1::2], strict=True)
            ]
            strict = tuple(constraints.follows(*each, text) for each in told)
            loose = tuple(constraints.loosely_follows(*each, text) for each in told)
            found = {name: float(follows) for (name, _), follows in zip(told, strict, strict=True)}
            samples.append(Sample(item.id, item.context, text, "", found, (), {"followed": (strict, loose)}))
        return samples, []
