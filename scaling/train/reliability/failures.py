"""What JAX raises when a device or another process fails, in the words of the command."""

import contextlib
import os
import sys
from collections.abc import Iterator

import jax

from scaling import exit_codes
from scaling.parallel import distributed
from scaling.train.reliability.goodput import Goodput


@contextlib.contextmanager
def explained(goodput: Goodput) -> Iterator[None]:
    """Makes sentences of such exceptions; where another process of the run is gone, ends this one at once.

    Raises:
        ValueError: a device ran out of memory.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if distributed.is_lost_peer(error):
            _leave(error, goodput)
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ValueError(
            "a device ran out of memory; lower config.train.microbatch_sequences, choose another "
            "config.compute.remat, or shard further with config.mesh.fsdp or tensor "
            f"({str(error).splitlines()[0][:200]})"
        ) from error


def _leave(error: Exception, goodput: Goodput) -> None:
    """Ends this process at once, since another one is gone: whatever waits for it would wait for ever."""
    print(
        "scaling train: error: another process of this run has died or cannot be reached; the same command goes on "
        f"from the last checkpoint ({' '.join(str(error).split())[:300]})",
        file=sys.stderr,
        flush=True,
    )
    goodput.end(exit_codes.HUNG)
    os._exit(exit_codes.HUNG)
