"""The thread that computes: the rows of continuous batching, in turns with requests that cannot be served so.

Of the latter a few are computed in turns, a piece of text each; the others wait in order.
"""

import collections
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from scaling.generate.continuous import Engine, Text

TOGETHER = 4  # requests that are computed in turns; each has a cache on the device
WAITING = 64  # requests that may wait; of continuous batching texts


class Busy(Exception):
    """Too many requests wait already."""


class Job:
    """What is computed for one request.

    Args:
        pieces: computes a piece at each step.
        deliver: takes each piece, then an exception if one was raised, else None; called in the worker's thread.
    """

    def __init__(self, pieces: Iterator[Any], deliver: Callable[[Any], object]) -> None:
        self._pieces, self._deliver = pieces, deliver
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Nobody waits for it any more: the piece that is being computed is the last."""
        self._stopped.set()

    def step(self) -> bool:
        """Computes a piece; returns whether there may be another."""
        if self._stopped.is_set():
            self._pieces.close()  # type: ignore[attr-defined]  # a generator
            return False
        try:
            piece = next(self._pieces, None)
        except Exception as error:  # of this request alone: the others go on
            piece = error
        try:
            self._deliver(piece)
        except RuntimeError:  # the loop that waited for it is closed
            return False
        return not (piece is None or isinstance(piece, Exception))


class Turns:
    """The thread that computes."""

    def __init__(self) -> None:
        self._waiting: collections.deque[Job] = collections.deque()
        self._engines: set[Engine] = set()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="turns", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Puts a job at the end of the queue.

        Raises:
            Busy: the queue is full.
        """
        with self._changed:
            if len(self._waiting) >= WAITING:
                raise Busy(f"{WAITING} requests wait already; try again later")
            self._waiting.append(job)
            self._changed.notify()

    def join(self, engine: Engine, texts: Sequence[Text]) -> None:
        """Puts texts at the end of an engine's queue.

        Raises:
            Busy: the queue is full.
            ValueError: the engine cannot continue them.
        """
        with self._changed:
            if engine.waiting >= WAITING:
                raise Busy(f"{engine.waiting} texts wait already; try again later")
            engine.submit(texts)
            self._engines.add(engine)
            self._changed.notify()

    def close(self) -> None:
        """Ends after the piece that is being computed."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        active: collections.deque[Job] = collections.deque()
        while True:
            with self._changed:
                while not (active or self._waiting or self._closed or any(engine.busy for engine in self._engines)):
                    self._changed.wait()
                if self._closed:
                    return
                engines = [engine for engine in self._engines if engine.busy]
                while self._waiting and len(active) < TOGETHER:
                    active.append(self._waiting.popleft())
            if active and (job := active.popleft()).step():
                active.append(job)
            for engine in engines:
                engine.step()
