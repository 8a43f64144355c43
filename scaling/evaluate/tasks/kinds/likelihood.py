"""Likelihood of the right answer: a number that changes smoothly with the size of a model, where accuracy jumps."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from scaling.evaluate.scoring.records import Sample
from scaling.evaluate.tasks.kind import Watch
from scaling.evaluate.tasks.kinds.one_answer import OneAnswer
from scaling.evaluate.tasks.request import Request

if TYPE_CHECKING:
    from scaling.evaluate.scoring.answers import Answers


@dataclasses.dataclass(frozen=True)
class Likelihood(OneAnswer):
    """Bits per byte and perplexity per token of the answer alone: the task loss of arXiv 2412.04403.

    The space before the answer counts as a byte.
    """

    gives = ("nats", "bytes")

    def answer(self, model: "Answers", items: Sequence[Request], watch: Watch) -> tuple[list[Sample], list[str]]:
        """Log-likelihood in nats, tokens and bytes of each answer."""
        scores, notes = model.options(items, watch)
        samples = []
        for item, ((score, _),) in zip(items, scores, strict=True):
            target, nats = item.options[0].completion, -score.logprob
            sizes = {"tokens": float(score.tokens), "bytes": float(len(target.encode()))}
            facts = {"nats": (nats, sizes["tokens"]), "bytes": (nats, sizes["bytes"])}
            found = {"log_likelihood": score.logprob, **sizes}
            samples.append(Sample(item.id, item.context, "", target, found, (score.logprob,), facts))
        return samples, notes
