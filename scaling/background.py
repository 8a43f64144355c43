"""Small files of a run in an object store, written by a thread, so that no step waits for a put or for its retries."""

import threading
import time
from collections.abc import Callable
from typing import Any

_changed = threading.Condition()
_waiting: dict[str, tuple[float, Callable[[], Any]]] = {}  # key -> time at which it is due, job
_hurry = 0  # callers that wait for all jobs
_busy = False
_errors: list[BaseException] = []
_thread: threading.Thread | None = None


def later(key: str, job: Callable[[], Any], within: float = 0.0) -> None:
    """Runs a job in the background; it takes the place of one of the same key that has not begun.

    Args:
        key: of what is written.
        job: what to do.
        within: seconds; until then it may wait for others to take its place, or for ``settle``.

    Raises:
        OSError: of an earlier job, again and again until ``settle`` raises it.
    """
    global _thread
    with _changed:
        _raise_error()
        due = time.monotonic() + within
        _waiting[key] = (min(due, _waiting[key][0]) if key in _waiting else due), job
        if _thread is None:
            _thread = threading.Thread(target=_work, name="background", daemon=True)
            _thread.start()
        _changed.notify_all()


def settle() -> None:
    """Does all jobs now, and waits for them.

    Raises:
        OSError: of one of them, or of one before.
    """
    global _hurry
    with _changed:
        _hurry += 1
        _changed.notify_all()
        try:
            _changed.wait_for(lambda: not _waiting and not _busy)
        finally:
            _hurry -= 1
        try:
            _raise_error()
        finally:
            _errors.clear()


def _raise_error() -> None:
    if _errors:
        raise _errors[0]


def _work() -> None:
    while True:
        job = _next()
        try:
            job()
        except BaseException as error:
            with _changed:
                _errors[:] = [error]


def _next() -> Callable[[], Any]:
    """Waits until a job is due, and takes it."""
    global _busy
    with _changed:
        _busy = False
        _changed.notify_all()
        while True:
            if _waiting:
                key = min(_waiting, key=lambda key: _waiting[key][0])
                left = _waiting[key][0] - time.monotonic()
                if left <= 0 or _hurry:
                    _busy = True
                    return _waiting.pop(key)[1]
            _changed.wait(left if _waiting else None)
