"""One of two processes that agree at logged lines; prints as JSON how long that takes. Run by ``loop_pieces``."""

import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from scaling.bench.quiet import repeated
from scaling.config import schema as cfg
from scaling.parallel import distributed
from scaling.train.signals import StopRequest

_CALLS = 50


def main(address: str, process: int) -> None:
    """Joins the other, and times what both do together at a logged line."""
    distributed.initialize(cfg.Distributed(coordinator_address=address, num_processes=2, process_id=process), 1)
    digests = np.zeros((32, 2), np.uint32)
    found = {
        "question for signals": _seconds(StopRequest().agreed),
        "hashes of 32 sequences": _seconds(lambda: multihost_utils.process_allgather(digests)),
    }
    if process == 0:
        print(json.dumps(found))
    jax.distributed.shutdown()


def _seconds(call: Callable[[], Any]) -> list[tuple[float, float]]:
    """Wall and CPU seconds of some calls."""
    call()
    return [(timing.seconds, timing.cpu) for timing in repeated(call, _CALLS)]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
