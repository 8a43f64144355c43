"""A hash of each step's batch, as the loader gives it: what order-of-data checks across resumes compare."""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from scaling.data.batch import Batch

_HASHED = ("tokens", "targets", "number", "pretraining", "order")  # each kind of row has some of these arrays


def of_step(dataset: Any, first: int, count: int, total: int) -> str:
    """The same hash of one batch, read again here, in one process.

    Args:
        dataset: sequences or rows by index.
        first: its first sequence.
        count: its sequences.
        total: sequences of the largest batch, to which it is filled up with zeros.
    """
    digests = np.zeros((total, 2), np.uint32)
    for i in range(total):
        arrays = _arrays(dataset[first + i])
        digests[i] = _digest(arrays if i < count else [np.zeros_like(x) for x in arrays])
    return _combined(digests)


def _arrays(item: Any) -> list[np.ndarray]:
    """What is hashed of a sequence, or of a row or batch of rows (see ``batch.filled``)."""
    if isinstance(item, np.ndarray):
        return [item[:-1], item[1:]]
    return [getattr(item, name) for name in _HASHED if getattr(item, name, None) is not None]


def _digest(arrays: Iterable[np.ndarray]) -> np.ndarray:
    """Of one sequence, uint32 [2]."""
    return np.frombuffer(hashlib.blake2b(b"".join(x.tobytes() for x in arrays), digest_size=8).digest(), "<u4")


def _combined(digests: np.ndarray) -> str:
    return hashlib.blake2b(digests.astype("<u4").tobytes(), digest_size=8).hexdigest()


class BatchHashes:
    """Hashes by sequence, so that a batch's does not depend on its microbatches or on who read which rows."""

    def __init__(self, rows: np.ndarray, microbatch: int):
        """Args: rows of a microbatch that this process reads, and how many it has over all processes."""
        self._rows, self._microbatch = rows, microbatch
        self._batches: deque[Batch] = deque()

    def watched(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches; each is kept until it is asked for."""
        for batch in batches:
            self._batches.append(batch)
            yield batch

    def popped(self) -> Batch:
        """The oldest batch that was not asked for yet: that of the step being dispatched."""
        return self._batches.popleft()

    def combined(self, batch: Batch) -> str:
        """The hash of a step's whole batch, 16 hexadecimal digits; collective where there are several processes."""
        count = batch.tokens.shape[0]
        digests = np.zeros((count * self._microbatch, 2), np.uint32)
        for number in range(count):
            for slot, row in enumerate(self._rows):
                digest = _digest(x[number, slot] for x in _arrays(batch))
                digests[number * self._microbatch + row] = digest
        if jax.process_count() > 1:  # several may hold the same rows
            digests = np.asarray(multihost_utils.process_allgather(digests)).max(axis=0)
        return _combined(digests)
