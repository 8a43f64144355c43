"""Running text: no question, only how well the text itself is predicted."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from scaling.evaluate.scoring.records import Sample
from scaling.evaluate.tasks.kind import Kind, Watch
from scaling.evaluate.tasks.request import Item, Rendered, Request

if TYPE_CHECKING:
    from scaling.evaluate.scoring.answers import Answers

_SHOWN = 200  # characters of a text in its sample


@dataclasses.dataclass(frozen=True)
class Text(Kind):
    """The context of an item is the text; empty ones are skipped."""

    gives = ("nats", "bytes")
    running_text = True
    in_dialogue = False

    def render(self, context: str, item: Item) -> Rendered:
        """The text alone."""
        return Rendered(context)

    def answer(self, model: "Answers", items: Sequence[Request], watch: Watch) -> tuple[list[Sample], list[str]]:
        """Log-likelihood in nats, tokens and bytes of each text."""
        samples = []
        for item, (total, tokens) in zip(items, model.whole_texts(items, watch), strict=True):
            found = {"log_likelihood": total, "tokens": float(tokens), "bytes": float(len(item.context.encode()))}
            facts = {"nats": (-total, found["tokens"]), "bytes": (-total, found["bytes"])}
            samples.append(Sample(item.id, item.context[:_SHOWN], "", "", found, (total,), facts))
        return samples, []
