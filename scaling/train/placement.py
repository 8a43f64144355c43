"""Host batches onto devices, a few ahead of the step that needs them."""

from collections import deque
from collections.abc import Iterable, Iterator

import jax
import numpy as np

HostBatch = dict[str, np.ndarray]  # int32 [microbatches, local rows, tokens]


def local_rows(sharding: jax.sharding.NamedSharding, rows: int) -> np.ndarray:
    """Which of a microbatch's ``rows`` sequences the devices of this process hold, ascending."""
    tokens = sharding.mesh.size  # any number that the axes divide
    indices = sharding.addressable_devices_indices_map((1, rows, tokens)).values()
    return np.unique(np.concatenate([np.arange(rows)[index[1]] for index in indices if index]))


def place(batch: HostBatch, rows: np.ndarray, total: int, sharding: jax.sharding.NamedSharding) -> dict[str, jax.Array]:
    """Makes global arrays [microbatches, total, tokens] of which this process holds ``rows``."""

    def array(local: np.ndarray) -> jax.Array:
        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            wanted = np.arange(total)[index[1]]
            return local[:, np.searchsorted(rows, wanted), index[2]]

        return jax.make_array_from_callback((local.shape[0], total, local.shape[2]), sharding, shard)

    return {name: array(values) for name, values in batch.items()}


def prefetched(
    batches: Iterable[HostBatch], rows: np.ndarray, total: int, sharding: jax.sharding.NamedSharding, ahead: int = 2
) -> Iterator[dict[str, jax.Array]]:
    """Places each batch ``ahead`` batches before it is asked for: transfers overlap with computation."""
    waiting: deque[dict[str, jax.Array]] = deque()
    for batch in batches:
        waiting.append(place(batch, rows, total, sharding))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting
