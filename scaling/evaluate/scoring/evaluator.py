"""Runs tasks on a model: requests to answers, these to scores with standard errors."""

from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from scaling.config import schema as cfg
from scaling.data.tokenizer import Tokenizer
from scaling.evaluate.scoring import metrics
from scaling.evaluate.scoring.answers import Answers, Asking
from scaling.evaluate.scoring.likelihoods import Work
from scaling.evaluate.scoring.records import Result
from scaling.evaluate.tasks.prompts import Requests, Room
from scaling.model import decoder

CHAT = "chat"  # with the group of a task that was asked in a dialogue, so that its records stand apart


class Evaluator:
    """One model and its tokenizer, for any number of tasks.

    Args:
        network: resolved.
        params: as training holds them, on the mesh if there is one.
        words: tokenizer of the model.
        mesh: devices; None = one.
        asking: how prompts are framed and answers rated; None = as running text, without raters.
    """

    def __init__(
        self,
        network: cfg.Network,
        params: decoder.Params,
        words: Tokenizer,
        mesh: Mesh | None = None,
        asking: Asking | None = None,
    ):
        self._answers = Answers(network, params, words, mesh, asking or Asking())

    @property
    def room(self) -> Room:
        """What prompt and answer may have together."""
        return self._answers.room

    @property
    def work(self) -> Work:
        """Tokens that the likelihoods took, and the padding among them."""
        return self._answers.scorer.work

    def evaluate(self, requests: Requests, watch: Callable[[int], Any] = lambda done: None) -> Result:
        """Scores the requests of a task.

        Args:
            requests: from ``build_requests``.
            watch: told how many items are done.

        Raises:
            ValueError: an item that the model cannot read, or a metric whose library is missing.
        """
        task = requests.task
        items = requests.usable()
        samples, notes = task.scoring.answer(self._answers, items, watch)
        values, samples = metrics.compute(task.metrics, samples)
        watch(len(items))
        return Result(
            task=task.name,
            group=f"{CHAT}/{task.group}" if self._answers.asking.chat is not None else task.group,
            shots=requests.shots,
            scores=values,
            count=len(items),
            chance=task.scoring.chance(items),
            samples=tuple(samples),
            notes=(*requests.notes, *notes),
            shots_used=sum(item.shots for item in items) / len(items),
            left_out=len(requests.items) - len(items),
            sampled=task.sampled,
            measures=task.measures,
        )
