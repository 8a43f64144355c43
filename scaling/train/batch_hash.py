"""A hash of each step's batch, as the loader gives it: what order-of-data checks across resumes compare."""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from scaling.train.placement import HostBatch


class BatchHashes:
    """Hashes by sequence, so that a batch's does not depend on its microbatches or on who read which rows."""

    def __init__(self, rows: np.ndarray, microbatch: int):
        """Args: rows of a microbatch that this process reads, and how many it has over all processes."""
        self._rows, self._microbatch = rows, microbatch
        self._batches: deque[HostBatch] = deque()

    def watched(self, batches: Iterable[HostBatch]) -> Iterator[HostBatch]:
        """The same batches; each is kept until it is asked for."""
        for batch in batches:
            self._batches.append(batch)
            yield batch

    def popped(self) -> HostBatch:
        """The oldest batch that was not asked for yet: that of the step being dispatched."""
        return self._batches.popleft()

    def combined(self, batch: HostBatch) -> str:
        """The hash of a step's whole batch, 16 hexadecimal digits; collective where there are several processes."""
        count = batch["inputs"].shape[0]
        digests = np.zeros((count * self._microbatch, 2), np.uint32)
        for number in range(count):
            for slot, row in enumerate(self._rows):
                sequence = batch["inputs"][number, slot].tobytes() + batch["targets"][number, slot].tobytes()
                digest = hashlib.blake2b(sequence, digest_size=8).digest()
                digests[number * self._microbatch + row] = np.frombuffer(digest, "<u4")
        if jax.process_count() > 1:  # several may hold the same rows
            digests = np.asarray(multihost_utils.process_allgather(digests)).max(axis=0)
        return hashlib.blake2b(digests.astype("<u4").tobytes(), digest_size=8).hexdigest()
