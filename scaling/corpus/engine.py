"""Runs a function on many items at once, by Daft: on processes of this machine (``native``), or on a Ray cluster."""

import dataclasses
import logging
import os
import pickle
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

ENGINES = ("native", "ray")


@dataclasses.dataclass(frozen=True)
class Engine:
    """Where tasks run.

    Attributes:
        kind: one of ``ENGINES``. ``ray`` uses the cluster of ``RAY_ADDRESS``, or one that it starts on this machine.
        workers: processes at a time; 0 = one for each core of this machine, or of the cluster.
    """

    kind: str = "native"
    workers: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ENGINES:
            raise ValueError(f"config.engine must be {' or '.join(ENGINES)}, not {self.kind!r}")
        if self.workers < 0:
            raise ValueError(f"config.workers={self.workers} must be at least 0")

    def each(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        """Yields ``function(item)`` for each item as they are done; in which order is not said.

        Args:
            function: pickled to the workers, as are items and results.
            items: what it is called with.

        Raises:
            Exception: what ``function`` raised, the first that is noticed; items that run then may be lost.
        """
        if self.kind == "native" and (self.workers == 1 or len(items) <= 1):
            yield from map(function, items)
            return
        for outcome in self._by_daft(function, [pickle.dumps(item) for item in items]):
            error, result = pickle.loads(outcome)
            if error is not None:
                raise error
            yield result

    def _by_daft(self, function: Callable[[Any], Any], items: list[bytes]) -> Iterator[bytes]:
        import daft

        workers = self.workers or _cores()
        if self.kind == "ray":
            workers = self.workers or _start_ray()

        @daft.cls(max_concurrency=min(workers, len(items)), use_process=True)
        class Worker:
            @daft.method.batch(return_dtype=daft.DataType.binary(), batch_size=1)
            def call(self, column: Any) -> list[bytes]:
                return [_outcome(function, item) for item in column.to_pylist()]

        worker: Any = Worker()  # its methods take columns, too
        frame = daft.from_pydict({"item": items})
        if self.kind == "ray":
            frame = frame.into_partitions(len(items))
        for row in frame.select(worker.call(frame["item"]).alias("outcome")).iter_rows():
            yield row["outcome"]


def _outcome(function: Callable[[Any], Any], item: bytes) -> bytes:
    """Pickled (error, result); an error that cannot be pickled, and a bug, become a text with the traceback."""
    try:
        return pickle.dumps((None, function(pickle.loads(item))))
    except (ValueError, OSError) as error:
        try:
            return pickle.dumps((error, None))
        except Exception:
            return pickle.dumps((ValueError(str(error)), None))
    except Exception:
        return pickle.dumps((RuntimeError(f"a task of the corpus has a bug:\n{traceback.format_exc()}"), None))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_ray() -> int:
    """Joins the Ray cluster, or starts one on this machine; the number of its cores.

    Raises:
        ValueError: Ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise ValueError("config.engine=ray needs Ray: pip install 'scaling[ray]'") from None
    import daft

    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        daft.set_runner_ray()
    return int(ray.cluster_resources().get("CPU", 1))
