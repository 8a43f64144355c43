"""Free-form answers that should be nearer to right answers than to wrong ones: TruthfulQA's generated answers."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from scaling.evaluate.scoring.records import Sample
from scaling.evaluate.tasks.kind import FieldName, Watch
from scaling.evaluate.tasks.kinds.free_form import FreeForm
from scaling.evaluate.tasks.request import Item, Rendered, Request

if TYPE_CHECKING:
    from scaling.evaluate.scoring.answers import Answers


@dataclasses.dataclass(frozen=True)
class Contrast(FreeForm):
    """As ``free_form``, with answers that are known to be wrong (Lin et al., arXiv 2109.07958, appendix B).

    Attributes:
        wrong: a list field of wrong answers.
    """

    gives = ("text", "contrast")

    wrong: FieldName = dataclasses.field(kw_only=True)

    def render(self, context: str, item: Item) -> Rendered:
        """Accepted and wrong answers."""
        wrong = tuple(item.not_empty(item.texts(self.wrong), "scoring.wrong"))
        if not wrong:
            raise ValueError(f"{item.where}: {self.wrong!r} holds no wrong answer")
        return dataclasses.replace(super().render(context, item), kept=wrong)

    def answer(self, model: "Answers", items: Sequence[Request], watch: Watch) -> tuple[list[Sample], list[str]]:
        """The generated answer, beside both."""
        samples, notes = super().answer(model, items, watch)
        return [
            dataclasses.replace(sample, facts={**sample.facts, "contrast": (sample.answer, item.references, item.kept)})
            for item, sample in zip(items, samples, strict=True)
        ], notes
