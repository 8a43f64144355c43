"""Runs tasks on a model: requests to answers, these to scores with standard errors."""

from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from scaling.config import schema as cfg
from scaling.data.tokenizer import Tokenizer
from scaling.evaluate.scoring import metrics
from scaling.evaluate.scoring.answers import Answers
from scaling.evaluate.scoring.likelihoods import Work
from scaling.evaluate.scoring.records import Result
from scaling.evaluate.tasks.prompts import Requests, Room
from scaling.model import decoder


class Evaluator:
    """One model and its tokenizer, for any number of tasks.

    Args:
        network: resolved.
        params: as training holds them, on the mesh if there is one.
        words: tokenizer of the model.
        mesh: devices; None = one.
        prefix: whether texts follow what begins a text for the tokenizer (``Tokenizer.start``);
            lm-evaluation-harness does without for GPT-2.
    """

    def __init__(
        self,
        network: cfg.Network,
        params: decoder.Params,
        words: Tokenizer,
        mesh: Mesh | None = None,
        prefix: bool = True,
    ):
        self._answers = Answers(network, params, words, mesh, words.start if prefix else ())
        self._context_length = network.model.context_length

    @property
    def room(self) -> Room:
        """What prompt and answer may have together."""
        return Room(self._answers.words, self._context_length - len(self._answers.prefix))

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
            group=task.group,
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
