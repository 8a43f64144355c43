"""Rows in memory as training data: shuffled without replacement, anew each epoch, by the seed of the run."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import grain

from scaling.config import schema as cfg
from scaling.data.chat.rows import fingerprint
from scaling.data.noise.row import Noise

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Rows:
    """Endless stream of rows (see ``batch.filled``); element i is a function of (seed, i) alone.

    Attributes:
        stream: the grain dataset behind it.
        sequences: rows in one pass.
        tokens: places in one pass.
        fingerprint: hash of everything that decides the stream.
        group: rows of an item of the stream.
        noise: what is made of the stream's items; None = they are the rows.
    """

    stream: grain.MapDataset
    sequences: int
    tokens: int
    fingerprint: str
    group: int = 1
    noise: Noise | None = None

    @classmethod
    def of(cls, items: Sequence[Any], config: cfg.Config, group: int = 1, noise: Noise | None = None) -> "Rows":
        """Rows in the order of a run's seed; with ``group`` > 1, each item is a list of so many that stay together."""
        order = int.from_bytes(hashlib.blake2b(f"{config.seed} rows".encode(), digest_size=4).digest())
        stream = grain.MapDataset.source(items).shuffle(seed=order).repeat()
        rows = items if group == 1 else [row for item in items for row in item]
        length = config.train.sequence_length
        facts = (length, config.seed, *([noise.name] if noise else []))
        return cls(stream, len(rows), len(rows) * length, fingerprint(rows, *facts), group, noise)

    def __getitem__(self, i: int) -> Any:
        """Row i, for any i >= 0."""
        if self.noise is not None:
            return self.noise(self.stream, i)
        return self.stream[i] if self.group == 1 else self.stream[i // self.group][i % self.group]


def split(data: cfg.Data, read: Callable[[str], list[T]]) -> tuple[list[T], list[T]]:
    """What ``read`` makes of the training data, and of the validation data or a part that is held out."""
    training = read(data.train)
    if data.validation:
        return training, read(data.validation)
    return held_out(training, data.validation_fraction, data.train)


def held_out(items: Sequence[T], fraction: float, where: str) -> tuple[list[T], list[T]]:
    """Items to train on and others to validate on: every so many-th, at least one.

    Raises:
        ValueError: there is only one.
    """
    if len(items) < 2:
        raise ValueError(
            f"{where} has one usable record, and one must be held out; give more, or config.data.validation"
        )
    every = min(len(items), max(2, round(1 / fraction))) if fraction else len(items)
    kept = [item for i, item in enumerate(items) if i % every != every - 1]
    return kept, [item for i, item in enumerate(items) if i % every == every - 1]
