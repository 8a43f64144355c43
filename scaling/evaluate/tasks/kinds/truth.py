"""Multiple choice with several true answers: TruthfulQA's MC1 and MC2."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from scaling.evaluate.scoring.records import Sample
from scaling.evaluate.tasks.kind import Kind, Template, Texts, Watch
from scaling.evaluate.tasks.request import Item, Option, Rendered, Request, completion_after

if TYPE_CHECKING:
    from scaling.evaluate.scoring.answers import Answers

_TRUE, _FALSE = "true", "false"


@dataclasses.dataclass(frozen=True)
class Truth(Kind):
    """The log-likelihoods of whole answers are compared (Lin et al., arXiv 2109.07958, appendix B).

    Attributes:
        best: one of the true answers.
        true: the true answers.
        false: the false ones.
    """

    gives = ("truth",)

    best: Template
    true: Texts
    false: Texts

    def render(self, context: str, item: Item) -> Rendered:
        """All answers after the same context, the true ones first."""
        best = item.text(self.best)
        answers = {
            role: item.not_empty(item.texts(spec), f"scoring.{role}")
            for role, spec in ((_TRUE, self.true), (_FALSE, self.false))
        }
        for role, texts in answers.items():
            if not texts:
                raise ValueError(f"{item.where}: there is no {role} answer")
        if best not in answers[_TRUE]:
            raise ValueError(f"{item.where}: the best answer {best[:40]!r} is none of the true ones")
        options = tuple(
            Option(context, completion_after(context, text)) for text in (*answers[_TRUE], *answers[_FALSE])
        )
        gold = answers[_TRUE].index(best)
        kept = tuple(role for role, texts in answers.items() for _ in texts)
        return Rendered(context, options, gold, options[gold].completion, kept=kept)

    def answer(self, model: "Answers", items: Sequence[Request], watch: Watch) -> tuple[list[Sample], list[str]]:
        """The likeliest of all answers, with the log-likelihoods of the best, the true and the false ones."""
        scores, notes = model.options(items, watch)
        samples = []
        for item, its in zip(items, scores, strict=True):
            found = tuple(score.logprob for score, _ in its)
            true, false = (
                tuple(x for x, role in zip(found, item.kept, strict=True) if role == wanted)
                for wanted in (_TRUE, _FALSE)
            )
            answer = item.options[max(range(len(found)), key=found.__getitem__)].completion
            facts = {"truth": (found[item.gold], true, false)}
            samples.append(Sample(item.id, item.context, answer, item.target, {}, found, facts))
        return samples, notes

    def chance(self, items: Sequence[Request]) -> float:
        """Of MC1: that the best answer is likelier than each of the false ones."""
        return sum(1 / (1 + item.kept.count(_FALSE)) for item in items) / len(items)
