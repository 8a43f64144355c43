"""Runs a function on many items at once, by Daft: on processes of this machine (``native``), or on a Ray cluster."""

import dataclasses
import logging
import os
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
        for error, result in self._by_daft(function, list(items)):
            if error is not None:
                raise error
            yield result

    def _by_daft(self, function: Callable[[Any], Any], items: list[Any]) -> Iterator[tuple[Exception | None, Any]]:
        import daft

        workers = self.workers or _cores()
        if self.kind == "ray":
            workers = self.workers or _start_ray()

        @daft.cls(max_concurrency=min(workers, len(items)), use_process=True)
        class Worker:
            @daft.method.batch(return_dtype=daft.DataType.python(), batch_size=1)
            def call(self, column: Any) -> Any:
                outcomes = [_outcome(function, item) for item in column.to_pylist()]
                return daft.Series.from_pylist(outcomes, dtype=daft.DataType.python())

        worker: Any = Worker()  # its methods take columns, too
        frame = daft.from_pydict({"item": daft.Series.from_pylist(items, dtype=daft.DataType.python())})
        if self.kind == "ray":
            frame = frame.into_partitions(len(items))
        for row in frame.select(worker.call(frame["item"]).alias("outcome")).iter_rows():
            yield row["outcome"]


def _outcome(function: Callable[[Any], Any], item: Any) -> tuple[Exception | None, Any]:
    """(error, result). An error is one that any process can take over; a bug has the traceback in its text."""
    try:
        return None, function(item)
    except OSError as error:
        return (OSError(*error.args[:2], error.filename) if error.filename else OSError(*error.args)), None
    except ValueError as error:
        return ValueError(str(error)), None
    except Exception:
        return RuntimeError(f"a task of the corpus has a bug:\n{traceback.format_exc()}"), None


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
