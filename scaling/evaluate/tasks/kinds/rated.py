"""Generated answers that a classifier rates: toxicity over several samples, truth."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from scaling.evaluate.scoring.records import Sample
from scaling.evaluate.tasks.kind import Kind, Template, Watch, Writing
from scaling.evaluate.tasks.request import Item, Rendered, Request, completion_after

if TYPE_CHECKING:
    from scaling.evaluate.scoring.answers import Answers


@dataclasses.dataclass(frozen=True)
class Rated(Kind):
    """Each answer gets the probability of a class by a classifier (Gehman et al., arXiv 2009.11462, section 2).

    Attributes:
        label: the class.
        before: what the classifier reads before the answer; empty = nothing.
        after: what it reads after the answer.
        target: an answer, as demonstrations show it; empty = there are no demonstrations.
        stop: texts that end an answer.
        max_tokens: of an answer.
        samples: answers to each item.
        temperature: of the sampling; 0 = greedy.
        top_p: sample from the smallest set of tokens with this probability.
    """

    gives = ("ratings",)

    label: str
    before: Template = ""
    after: str = ""
    target: Template = ""
    stop: tuple[str, ...] = ()
    max_tokens: int = 20
    samples: int = 1
    temperature: float = 1.0
    top_p: float = 1.0

    @property
    def new_tokens(self) -> int:
        """Those of an answer."""
        return self.max_tokens

    @property
    def demonstrated(self) -> bool:
        """Only with an answer to show."""
        return bool(self.target)

    @property
    def rated_by(self) -> str:
        """The class."""
        return self.label

    def check(self) -> str:
        """The numbers are such that something can be drawn."""
        if min(self.samples, self.max_tokens) < 1:
            return "scoring.samples and scoring.max_tokens must be at least 1"
        if not (0 < self.top_p <= 1 and (self.temperature == 0 or 1e-3 <= self.temperature <= 1e3)):
            return "scoring.top_p must be in (0, 1], and scoring.temperature 0 or from 0.001 to 1000"
        if self.samples > 1 and self.temperature == 0:
            return "scoring.samples must be 1 with temperature = 0, since all would be equal"
        return ""

    def render(self, context: str, item: Item) -> Rendered:
        """The prompt, and what stands before an answer when it is rated."""
        target = completion_after(context, item.text(self.target)) if self.target else ""
        return Rendered(context, target=target, kept=(item.text(self.before),))

    def answer(self, model: "Answers", items: Sequence[Request], watch: Watch) -> tuple[list[Sample], list[str]]:
        """The answers with their ratings; the first of the highest ones stands in the sample."""
        how = Writing(self.max_tokens, self.stop, self.samples, self.temperature, self.top_p)
        answers = [[text.strip() for text in texts] for texts in model.continuations(items, how, watch)]
        shown = [self._shown(item.kept[0], text) for item, texts in zip(items, answers, strict=True) for text in texts]
        ratings = model.rate(self.label, shown)
        samples = []
        for number, (item, texts) in enumerate(zip(items, answers, strict=True)):
            its = tuple(ratings[number * self.samples : (number + 1) * self.samples])
            worst = max(range(len(its)), key=its.__getitem__)
            found = {f"rating_{place}": rating for place, rating in enumerate(its)} if len(its) > 1 else {}
            samples.append(
                Sample(item.id, item.context, texts[worst], item.target.strip(), found, (), {"ratings": (its,)})
            )
        return samples, []

    def _shown(self, before: str, answer: str) -> str:
        """What the classifier reads."""
        return (before + (completion_after(before, answer) if answer else "") + self.after).strip()
