"""Host batches onto devices, a few ahead of the step that needs them."""

from collections import deque
from collections.abc import Iterable, Iterator

import jax
import numpy as np
from jax.sharding import PartitionSpec

from scaling.data.batch import Batch


def local_rows(sharding: jax.sharding.NamedSharding, rows: int) -> np.ndarray:
    """Which of a microbatch's ``rows`` sequences the devices of this process hold, ascending."""
    tokens = sharding.mesh.size  # any number that the axes divide
    indices = sharding.addressable_devices_indices_map((1, rows, tokens)).values()
    return np.unique(np.concatenate([np.arange(rows)[index[1]] for index in indices if index]))


def place(batch: Batch, rows: np.ndarray, total: int, sharding: jax.sharding.NamedSharding) -> Batch:
    """Makes global arrays [microbatches, total, ...] of which this process holds ``rows``.

    Arrays of tokens [microbatches, total, T] are laid out by ``sharding``; others have its first dimensions.
    """

    def array(local: np.ndarray) -> jax.Array:
        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            wanted = np.arange(total)[index[1]]
            mine: np.ndarray = local[:, np.searchsorted(rows, wanted)]
            return mine[(slice(None), slice(None), *index[2:])]

        where = jax.sharding.NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[: local.ndim]))
        return jax.make_array_from_callback((local.shape[0], total, *local.shape[2:]), where, shard)

    return jax.tree.map(array, batch)


def prefetched(
    batches: Iterable[Batch], rows: np.ndarray, total: int, sharding: jax.sharding.NamedSharding, ahead: int = 2
) -> Iterator[Batch]:
    """Places each batch ``ahead`` batches before it is asked for: transfers overlap with computation."""
    waiting: deque[Batch] = deque()
    for batch in batches:
        waiting.append(place(batch, rows, total, sharding))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting
