"""What kinds share whose items have one answer, whose likelihood is asked for."""

import dataclasses

from scaling.evaluate.tasks.kind import Kind, Template
from scaling.evaluate.tasks.request import Item, Option, Rendered, completion_after


@dataclasses.dataclass(frozen=True)
class OneAnswer(Kind):
    """An item is its context and the answer.

    Attributes:
        target: the answer.
    """

    target: Template

    def render(self, context: str, item: Item) -> Rendered:
        """The target is the only option."""
        (target,) = item.not_empty([item.text(self.target)], "scoring.target")
        completion = completion_after(context, target)
        return Rendered(context, (Option(context, completion),), target=completion)
