"""The loss on the held-out data."""

import math
import time
from typing import Any

from scaling.data import loader
from scaling.parallel.sharding import batch_sharding
from scaling.train.metrics import Log
from scaling.train.placement import local_rows, place
from scaling.train.run import Run
from scaling.train.state import TrainState
from scaling.train.step import make_eval_step


class Validation:
    """Computes the loss and writes it to ``evals.jsonl``; the ``run`` of a hook.

    Attributes:
        loss: nats a token, of the last time; NaN before.
    """

    def __init__(self, run: Run, log: Log):
        """Args: the run; where the numbers go."""
        config = run.config
        self._run, self._log = run, log
        self._count = min(len(run.data.held_out), max(1, config.eval.tokens // config.train.sequence_length))
        self._step = make_eval_step(config, run.mesh, run.words.eot)
        self.loss = math.nan

    def __call__(self, step: int, state: TrainState) -> None:
        """After so many steps."""
        start = time.monotonic()
        result = self._evaluate(state["params"])
        self._log.evaluation({"step": step, "tokens": self._run.schedule.tokens(step), **result})
        self.loss = result["loss"]
        self._log.note(f"step {step}  validation loss {self.loss:.4f}  ({time.monotonic() - start:.1f} s)")

    def _evaluate(self, params: Any) -> dict[str, float]:
        """{"loss": nats a token, "eval_tokens": targets counted}."""
        size, sharding = self._run.config.eval.batch_sequences, batch_sharding(self._run.mesh)
        rows = local_rows(sharding, size)
        nll = targets = 0.0
        for batch in loader.evaluation_batches(self._run.data.held_out, self._count, size, rows):
            one = {name: values[None] for name, values in batch.items()}
            sums = self._step(params, place(one, rows, size, sharding))
            nll, targets = nll + float(sums.nll), targets + float(sums.targets)
        return {"loss": nll / targets, "eval_tokens": targets}
