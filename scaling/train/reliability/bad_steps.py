"""Bad steps as the loop sees them: each becomes a line of ``bad_steps.jsonl``, too many in a row a roll-back.

``guard`` judges steps on the device. Its verdicts are the same numbers in every process, so that all decide alike; only
the first writes.
"""

import math
from typing import Any

from scaling.runs.json_lines import JsonLines
from scaling.train.batch_hash import of_step
from scaling.train.reliability.rollbacks import Rollbacks
from scaling.train.run import Run

FILE = "bad_steps.jsonl"


class Diverged(Exception):
    """Bad steps that skipping and rolling back did not end; the message says what was tried."""


class RollBack(Exception):
    """Too many bad steps in a row, or weights that are not finite: the run must go on from an earlier state.

    Attributes:
        step: steps done, whose data are to be skipped.
        line: of ``metrics.jsonl``, by which readers see how the run ended if it cannot go on.
    """

    def __init__(self, reason: str, step: int, line: dict[str, Any]):
        super().__init__(reason)
        self.step, self.line = step, line

    def without_frames(self) -> "RollBack":
        """The same, by which no frame lives on with the state that it holds."""
        return self.with_traceback(None)


class BadSteps:
    """Notes the bad steps of one lineage: the steps since the start or the last roll-back. ``resume`` comes first."""

    def __init__(self, run: Run, rollbacks: Rollbacks):
        """Args: the run; its roll-backs: bad steps from before one keep their lines."""
        self._run, self._config, self._rollbacks = run, run.config.guard, rollbacks
        self._path = run.directory / FILE if run.is_first else None
        self._file: JsonLines | None = None
        self._resume_step = 0

    def resume(self, first_step: int) -> None:
        """Goes on after so many steps: later lines of this lineage are dropped, since they will come again."""
        self.close()
        self._resume_step = first_step
        if self._path and self._path.exists():
            self._open()

    def saw(self, line: dict[str, Any], in_a_row: int) -> None:
        """Notes one.

        Args:
            line: step, tokens, loss, lr and grad_norm.
            in_a_row: bad steps so far, this one included.

        Raises:
            RollBack: these are enough.
        """
        step = line["step"]
        first, count = self._rollbacks.span(step - 1)
        if self._path:
            file = self._file or self._open()
            place = {"first_sequence": first, "sequences": count, "batch_hash": self._batch_hash(first, count)}
            file.write(line | place | {"in_a_row": in_a_row, "rollbacks": len(self._rollbacks)})
        finite = math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"])
        spike = f", above config.guard.spike_factor={self._config.spike_factor:g} times a mean," if finite else ""
        if in_a_row >= max(1, self._config.rollback_after):
            many = f", the last of {in_a_row} bad steps in a row" if in_a_row > 1 else ""
            raise RollBack(
                f"loss {line['loss']} and gradient norm {line['grad_norm']}{spike} at step {step} "
                f"(learning rate {line['lr']:.3g}){many}",
                step,
                line,
            )

    def not_finite(self, line: dict[str, Any]) -> RollBack:
        """What to raise where the state itself has gone bad although the loss of its last step was finite."""
        reason = f"weights or moments that are not finite after step {line['step']} (learning rate {line['lr']:.3g})"
        return RollBack(reason, line["step"], line)

    def close(self) -> None:
        if self._file:
            self._file.close()
            self._file = None

    def _batch_hash(self, first: int, count: int) -> str | None:
        """Of the batch of these sequences; None if it cannot be read again."""
        try:
            return of_step(self._run.data.training, first, count, self._run.schedule.full)
        except (ValueError, OSError):
            return None

    def _open(self) -> JsonLines:
        assert self._path
        now = len(self._rollbacks)
        self._file = JsonLines(self._path, lambda line: line["step"] > self._resume_step and line["rollbacks"] == now)
        return self._file
