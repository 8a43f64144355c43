"""Multiple choice: the answer is the likeliest of several completions of one context."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from scaling.evaluate.scoring.records import Sample
from scaling.evaluate.tasks.kind import Kind, Template, Texts, Watch
from scaling.evaluate.tasks.request import Item, Option, Rendered, Request, completion_after

if TYPE_CHECKING:
    from scaling.evaluate.scoring.answers import Answers
    from scaling.evaluate.scoring.likelihoods import Score


@dataclasses.dataclass(frozen=True)
class Choices(Kind):
    """Completions are compared by their likelihood (arXiv 2005.14165, section 2.4).

    Attributes:
        choices: the completions.
        gold: the place of the right one from 0, or one of the labels.
        labels: what ``gold`` may say, in the order of the choices.
        normalisation: ``token`` = log-likelihood per token; ``sum`` = the log-likelihood; ``unconditional`` = the
            likelihood divided by that after ``answer_context``.
        answer_context: the context whose likelihood is divided out.
    """

    gives: ClassVar[tuple[str, ...]] = ("right", "classes", "right_per_token")
    normalisations = ("token", "sum", "unconditional")

    choices: Texts
    gold: Template
    labels: Texts = ()
    normalisation: str = ""
    answer_context: str = ""

    def check(self) -> str:
        """The answer context and the normalisation that needs it go together."""
        if (self.normalisation == "unconditional") != bool(self.answer_context):
            return "scoring.answer_context belongs to normalisation = 'unconditional', which needs it"
        return ""

    def render(self, context: str, item: Item) -> Rendered:
        """All choices after the same context."""
        choices = item.not_empty(item.texts(self.choices), "scoring.choices")
        options = tuple(Option(context, completion_after(context, choice)) for choice in choices)
        gold = gold_place(item, self.gold, self.labels, len(options))
        return Rendered(context, options, gold, options[gold].completion)

    def answer(self, model: "Answers", items: Sequence[Request], watch: Watch) -> tuple[list[Sample], list[str]]:
        """The likeliest choice."""
        scores, notes = model.options(items, watch, self.answer_context)
        samples = []
        for item, its in zip(items, scores, strict=True):
            sample, best = likeliest(item, tuple(self._compared(*pair) for pair in its))
            per_token, _ = likeliest(item, tuple(score.logprob / score.tokens for score, _ in its))
            more = {"classes": (item.gold, best), "right_per_token": per_token.facts["right"]}
            samples.append(dataclasses.replace(sample, facts={**sample.facts, **more}))
        return samples, notes

    def chance(self, items: Sequence[Request]) -> float:
        """The mean over items of one in as many as there are choices."""
        return chance_of_options(items)

    def _compared(self, score: "Score", unconditional: "Score | None") -> float:
        if self.normalisation == "sum":
            return score.logprob
        if self.normalisation == "unconditional":
            assert unconditional is not None
            return score.logprob - unconditional.logprob
        return score.logprob / score.tokens


def gold_place(item: Item, gold: str, labels: Texts, count: int) -> int:
    """The place of the right one of ``count`` options.

    Raises:
        ValueError: the answer is none of the labels, no number, or too large a one.
    """
    value, names = item.text(gold), item.texts(labels)
    if names:
        if value not in names:
            raise ValueError(f"{item.where}: the answer {value[:40]!r} is none of {', '.join(map(repr, names))}")
        place = names.index(value)
    elif value.isdecimal() and len(value) < 10:
        place = int(value)
    else:
        raise ValueError(f"{item.where}: the answer {value[:40]!r} must be the number of a choice, from 0")
    if place >= count:
        raise ValueError(f"{item.where}: the answer is choice {place}, from 0, of only {count}")
    return place


def likeliest(item: Request, compared: tuple[float, ...]) -> tuple[Sample, int]:
    """The option with the largest number, as an answer, and its place."""
    best = max(range(len(compared)), key=compared.__getitem__)
    right = float(best == item.gold)
    chosen, gold = item.options[best], item.options[item.gold]
    scores = {"accuracy": right, "choice": float(best)}
    facts = {"right": (right,)}
    return Sample(item.id, chosen.context, chosen.completion, gold.completion, scores, compared, facts), best


def chance_of_options(items: Sequence[Request]) -> float:
    """The accuracy of guessing one of the options of each item."""
    return sum(1 / len(item.options) for item in items) / len(items)
