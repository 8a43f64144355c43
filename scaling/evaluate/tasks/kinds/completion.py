"""Completion: the answer is right if greedy decoding gives it, as the last word of LAMBADA."""

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
class Completion(OneAnswer):
    """Perplexity is per item, exp(-mean log P(target)), as published for LAMBADA (Paperno et al. 2016; GPT-2)."""

    gives = ("right", "nats")

    def answer(self, model: "Answers", items: Sequence[Request], watch: Watch) -> tuple[list[Sample], list[str]]:
        """The target where greedy decoding gives it, else nothing."""
        scores, notes = model.options(items, watch)
        samples = []
        for item, ((score, _),) in zip(items, scores, strict=True):
            (target,) = item.options
            right = float(score.greedy)
            found = {"accuracy": right, "log_likelihood": score.logprob, "tokens": float(score.tokens)}
            facts = {"right": (right,), "nats": (-score.logprob, 1.0)}
            answer = target.completion if score.greedy else ""
            samples.append(Sample(item.id, item.context, answer, target.completion, found, (score.logprob,), facts))
        return samples, notes
