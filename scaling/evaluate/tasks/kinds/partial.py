"""Partial evaluation: the answer is the likeliest of several contexts, by one ending that follows each."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from scaling.evaluate.scoring.records import Sample
from scaling.evaluate.tasks.kind import Kind, Template, Texts, Watch
from scaling.evaluate.tasks.kinds.choices import chance_of_options, gold_place, likeliest
from scaling.evaluate.tasks.request import Item, Option, Rendered, Request, with_space

if TYPE_CHECKING:
    from scaling.evaluate.scoring.answers import Answers


@dataclasses.dataclass(frozen=True)
class Partial(Kind):
    """Only the ending's likelihood is compared (Trinh and Le 2018; GPT-3's Winograd schemas).

    Attributes:
        contexts: the sentence up to the ending, with each candidate put in.
        completion: the ending.
        gold: the place of the right candidate from 0, or one of the labels.
        labels: what ``gold`` may say, in the order of the candidates.
    """

    gives = ("right",)
    in_dialogue = False  # the completion continues a sentence of the context
    context_asks = False

    contexts: Texts
    completion: Template
    gold: Template
    labels: Texts = ()

    def render(self, context: str, item: Item) -> Rendered:
        """The same ending after each candidate."""
        (ending,) = item.not_empty([item.text(self.completion)], "scoring.completion")
        candidates = item.not_empty(item.texts(self.contexts), "scoring.contexts")
        contexts = [(f"{context} " if context else "") + candidate.rstrip() for candidate in candidates]
        options = tuple(Option(before, with_space(ending, before)) for before in contexts)
        gold = gold_place(item, self.gold, self.labels, len(options))
        return Rendered(options[gold].context, options, gold, options[gold].completion)

    def answer(self, model: "Answers", items: Sequence[Request], watch: Watch) -> tuple[list[Sample], list[str]]:
        """The candidate after which the ending is likeliest."""
        scores, notes = model.options(items, watch)
        compared = [tuple(score.logprob for score, _ in its) for its in scores]
        return [likeliest(item, its)[0] for item, its in zip(items, compared, strict=True)], notes

    def chance(self, items: Sequence[Request]) -> float:
        """The mean over items of one in as many as there are candidates."""
        return chance_of_options(items)
