"""The loss on the held-out data."""

import collections
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from scaling.data import loader
from scaling.objectives.objective import Objective
from scaling.parallel.sharding import batch_sharding
from scaling.train.metrics import Log
from scaling.train.placement import local_rows, place
from scaling.train.run import Data, Run
from scaling.train.state import TrainState
from scaling.train.step import make_eval_step

Derived = Callable[[Mapping[str, Any]], dict[str, float]]


class Validation:
    """Computes the loss and writes it to ``evals.jsonl``; the ``run`` of a hook.

    Attributes:
        loss: nats a token, of the last time; NaN before.
    """

    def __init__(
        self,
        run: Run,
        objective: Objective,
        log: Log,
        derived: Derived | None = None,
        frozen: Any = None,
        data: Data | None = None,
    ):
        """See the class.

        Args:
            run: see there.
            objective: with a metric "loss".
            log: where the numbers go.
            derived: more numbers, made of the means.
            frozen: what the objective takes besides the model.
            data: with what is held out; None = the run's.
        """
        config = run.config
        self._run, self._log, self._derived, self._frozen = run, log, derived, frozen
        self._data = run.data if data is None else data
        self._count = min(len(self._data.held_out), max(1, config.eval.tokens // config.train.sequence_length))
        self._step = make_eval_step(config, run.mesh, objective)
        self.loss = math.nan

    def __call__(self, step: int, state: TrainState) -> None:
        """After so many steps."""
        start = time.monotonic()
        result = self.evaluate(state)
        self._log.evaluation({"step": step, "tokens": self._run.schedule.tokens(step), **result})
        self.loss = result["loss"]
        reward = f"  reward {result['reward']:.4f}" if "reward" in result else ""
        self._log.note(f"step {step}  validation loss {self.loss:.4f}{reward}  ({time.monotonic() - start:.1f} s)")

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Means of the objective's metrics, and "eval_tokens": targets counted."""
        size, sharding = self._run.config.eval.batch_sequences, batch_sharding(self._run.mesh)
        rows = local_rows(sharding, size)
        weight, data = 0.0, self._data
        totals: dict[str, Any] = collections.defaultdict(float)
        ratios: dict[str, Any] = collections.defaultdict(lambda: np.zeros(2))
        for batch in loader.evaluation_batches(data.held_out, self._count, size, rows, data.separator):
            placed = place(batch, rows, size, sharding)
            sums = jax.device_get(self._step(state["params"], placed, self._frozen, self._run.base))
            for name, value in sums.metrics.items():
                totals[name] += np.asarray(value, np.float64)
            for name, pair in sums.ratios.items():
                ratios[name] += pair
            weight += float(sums.weight)
        means = {name: (total / weight).tolist() for name, total in totals.items()}
        means |= {name: float(total / max(whole, 1)) for name, (total, whole) in ratios.items()}
        return means | (self._derived(means) if self._derived else {}) | {"eval_tokens": weight}
