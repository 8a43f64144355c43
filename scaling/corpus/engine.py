"""Runs a function on many items at once, by Daft: on processes of this machine (``native``), or on a Ray cluster."""

import dataclasses
import functools
import json
import logging
import os
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ENGINES = ("native", "ray")
_WATCH = 0.1  # seconds between two looks of a worker at whether it is still wanted


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
            function: of an item; Daft sends it and the items to the workers. It returns what JSON can hold.
            items: what it is called with.

        Raises:
            ValueError, OSError: what ``function`` raised, the first that is noticed; tasks that run then may be lost.
            OSError: a worker was killed.
            RuntimeError: ``function`` has a bug; the text has the traceback.
            KeyboardInterrupt: ctrl-C. Daft may end quietly then.
        """
        if self.kind == "native" and (self.workers == 1 or len(items) <= 1):
            yield from map(function, items)
            return
        left = len(items)
        for text in self._by_daft(function, items):
            left -= 1
            outcome = json.loads(text)
            if "error" in outcome:
                raise _ERRORS[outcome["error"]](*outcome["arguments"])
            yield outcome["result"]
        if left:
            raise KeyboardInterrupt

    def _by_daft(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[str]:
        import daft

        workers = self.workers or _cores()
        if self.kind == "ray":
            workers = self.workers or _start_ray()
        native, parent = self.kind == "native", os.getpid()  # Ray itself ends the workers of a dead driver
        descriptor, name = tempfile.mkstemp(prefix="scaling-build-")
        os.close(descriptor)
        token = Path(name)  # is there as long as results are wanted

        @daft.cls(max_concurrency=min(workers, len(items)), use_process=True)
        class Worker:
            @daft.method.batch(return_dtype=daft.DataType.string(), batch_size=1)
            def call(self, column: Any) -> list[str]:
                if native:
                    _end_with(parent, token)
                return [json.dumps(_outcome(function, items[number])) for number in column.to_pylist()]

        worker: Any = Worker()  # its methods take columns, too
        frame = daft.from_pydict({"number": list(range(len(items)))})
        if self.kind == "ray":
            frame = frame.into_partitions(len(items))
        done = 0
        try:
            for row in frame.select(worker.call(frame["number"]).alias("outcome")).iter_rows():
                done += 1
                yield row["outcome"]
        except RuntimeError as error:
            if "UDF process" not in str(error):
                raise
            raise OSError(
                "a worker process of the build was killed, perhaps for lack of memory; give the same command again to "
                "go on, with fewer config.workers or smaller config.read.part_bytes if it happens again"
            ) from None
        finally:
            token.unlink(missing_ok=True)
            if native and done < len(items):
                time.sleep(2 * _WATCH)  # Daft's threads, which end with the workers, must not outlive Python


@functools.cache
def _end_with(parent: int, token: Path) -> None:
    """Ends this worker as soon as the process that started it, or the file, is gone; Daft would not stop its task."""

    def watch() -> None:
        while os.getppid() == parent and token.exists():
            time.sleep(_WATCH)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_ERRORS: dict[str, type[Exception]] = {"OSError": OSError, "ValueError": ValueError, "RuntimeError": RuntimeError}


def _outcome(function: Callable[[Any], Any], item: Any) -> dict[str, Any]:
    """The result of a task, or the error of a user, or the traceback of a bug, as plain values."""
    try:
        return {"result": function(item)}
    except OSError as error:
        known = error.errno is not None
        return {
            "error": "OSError",
            "arguments": [error.errno, error.strerror, error.filename] if known else [str(error)],
        }
    except ValueError as error:
        return {"error": "ValueError", "arguments": [str(error)]}
    except Exception:
        return {"error": "RuntimeError", "arguments": [f"a task of the corpus has a bug:\n{traceback.format_exc()}"]}


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
