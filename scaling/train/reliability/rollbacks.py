"""Which data a run left out by rolling back: ``rollbacks.json``, from which every resume takes the same order.

A roll-back goes to the state after ``step`` steps and past the sequences that were read since. So from ``step`` on, all
data lie ``sequences`` further on. This is applied by step: a later resume from any checkpoint, also one of before,
reads what the run itself reads there. Several add up.
"""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from scaling import durable
from scaling.train.schedule import BatchSchedule

FILE = "rollbacks.json"


@dataclasses.dataclass(frozen=True)
class Rollback:
    step: int  # steps done at the checkpoint
    sequences: int  # left out from there on
    present: int  # steps done when it was decided


class Rollbacks:
    """All roll-backs of a run, oldest first."""

    def __init__(self, run_dir: epath.Path, schedule: BatchSchedule):
        """Reads the file, if there is one.

        Raises:
            ValueError: it is damaged, or processes see different ones.
        """
        self._path, self._schedule = run_dir / FILE, schedule
        text = self._path.read_text() if self._path.exists() else "[]"
        try:
            self._all = [Rollback(**{name: int(value) for name, value in entry.items()}) for entry in json.loads(text)]
        except (ValueError, TypeError, AttributeError, OverflowError):
            raise ValueError(
                f"{self._path} is damaged (not the roll-backs of a run); restore it from a backup"
            ) from None
        if jax.process_count() > 1:
            mine = np.asarray([len(self._all), sum(entry.sequences for entry in self._all)])
            seen = np.asarray(multihost_utils.process_allgather(mine))
            if (seen != mine).any():
                raise ValueError(f"{self._path} is not the same file for all processes; config.workdir must be shared")

    def __len__(self) -> int:
        return len(self._all)

    def refuse_fewer(self, step: int, meta: dict[str, Any]) -> None:
        """Refuses to go on from a checkpoint that was saved after more roll-backs than the file knows of.

        Args:
            step: of the checkpoint.
            meta: its meta, with the number of ``rollbacks``.

        Raises:
            ValueError: the file was deleted or replaced; what was left out would come back.
        """
        if (before := meta.get("rollbacks", 0)) > len(self):
            raise ValueError(
                f"{self._path} has {len(self)} roll-backs, and the checkpoint of step {step} was saved after {before}: "
                "the data that they left out would be read after all; restore the file from a backup"
            )

    def to(self, step: int) -> bool:
        """Whether the run was already rolled back to this checkpoint."""
        return any(entry.step == step for entry in self._all)

    def span(self, step: int) -> tuple[int, int]:
        """(first sequence, number of sequences) of a step's batch."""
        first, count = self._schedule.span(step)
        return first + sum(entry.sequences for entry in self._all if entry.step <= step), count

    def add(self, step: int, present: int) -> None:
        """Goes back to ``step``, past the data of the steps up to ``present``; on disk when it returns."""
        sequences = self.span(present)[0] - self.span(step)[0]
        self._all.append(Rollback(step, sequences, present))
        if jax.process_index() == 0:
            text = json.dumps([dataclasses.asdict(entry) for entry in self._all], indent=1)
            durable.replace_text(self._path, text, synced=True)
