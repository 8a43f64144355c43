"""The lock of a run directory in an object store: one object, taken by a put that only one process can win.

The object ``.lock`` says who holds it. It is created and replaced only by puts with a precondition on its generation,
so of several processes that try at the same time one wins. The holder puts it again every ``BEAT`` seconds. No clocks
of machines are compared:

- If the holder was a process of this machine that is gone, the lock is taken over at once.
- Otherwise whoever wants the lock watches it. If it changes, the holder lives, and the second run is refused. If it has
  not changed for ``LEASE`` seconds of the watcher's own clock, the holder is dead, and the lock is taken over.
- A holder that finds another's name in the lock (it had been frozen or cut off for longer than ``LEASE``) ends at once,
  before it can write anything else.

A put whose answer was lost is repeated by TensorStore, and its precondition then fails: so whoever loses reads the lock
to see whether its own name is in it.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from scaling import exit_codes, object_store

BEAT = 10.0  # seconds
LEASE = 60.0  # seconds; several beats, and longer than most pauses of a machine
_POLL = 0.5


class StoreLock:
    """A lock that this process holds from ``take`` to ``release``."""

    def __init__(self, path: epath.Path, busy: str):
        """Args: of the object; the sentence for when another process has it."""
        self._path, self._busy = path, busy
        self._me = {"token": uuid.uuid4().hex, "host": socket.gethostname()} | _process(os.getpid())
        self._generation = b""
        self._beats = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)

    def take(self) -> None:
        """Takes the lock, after watching it if necessary.

        Raises:
            ValueError: another process holds it.
            OSError: the store does not answer, or refuses.
        """
        content, seen = object_store.read(self._path)
        changed = time.monotonic()
        while content is not None and not _is_gone(content):
            if time.monotonic() - changed > LEASE:
                break
            time.sleep(_POLL)
            content, generation = object_store.read(self._path)
            if content is not None and generation != seen:
                raise ValueError(f"{self._busy} ({_holder(content)})")
            seen = generation
        if not self._put(seen):
            raise ValueError(self._busy)
        self._thread.start()

    def release(self) -> None:
        """Gives it back; a lock that cannot be deleted is taken over later."""
        self._over.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            object_store.write(self._path, None, self._generation)

    def _put(self, generation: bytes) -> bool:
        """Writes the lock if it has this generation; whether it is this process's now."""
        self._beats += 1
        text = json.dumps(self._me | {"beat": self._beats, "until": time.time() + LEASE})
        new = object_store.write(self._path, text.encode(), generation)
        if new is None:
            content, new = object_store.read(self._path)
            if content is None or _values(content).get("token") != self._me["token"]:
                return False
        self._generation = new
        return True

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            try:
                if self._put(self._generation):
                    continue
            except OSError:  # the store does not answer: others cannot take the lock either
                continue
            print(
                f"scaling: error: another process has taken over {self._path.parent}, since this one was silent for "
                f"more than {LEASE:g} s; it ends here",
                file=sys.stderr,
                flush=True,
            )
            os._exit(exit_codes.IO)


def is_held(path: epath.Path) -> bool:
    """Whether a process seems to hold the lock, by its own clock; a look that decides nothing."""
    content, _ = object_store.read(path)
    return content is not None and not _is_gone(content) and _values(content).get("until", 0.0) > time.time()


@contextlib.contextmanager
def held(path: epath.Path, busy: str) -> Iterator[None]:
    """Holds a lock inside of the block; raises what ``StoreLock.take`` raises."""
    lock = StoreLock(path, busy)
    lock.take()
    try:
        yield
    finally:
        lock.release()


def _process(number: int) -> dict[str, Any]:
    """What identifies a process of this machine as long as it lives; nothing where there is no /proc."""
    try:
        start = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[19]
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return {"pid": number, "started": start, "machine": f"{boot} {Path('/proc/self/ns/pid').readlink()}"}
    except (OSError, IndexError):
        return {"pid": number}


def _is_gone(content: bytes) -> bool:
    """Whether the holder was a process of this machine, in the same container, and has ended."""
    them = _values(content)
    here = _process(os.getpid()).get("machine")
    if not here or them.get("machine") != here or type(them.get("pid")) is not int:
        return False
    return _process(them["pid"]).get("started") != them.get("started")


def _values(content: bytes) -> dict[str, Any]:
    try:
        values = json.loads(content)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _holder(content: bytes) -> str:
    values = _values(content)
    return f"process {values.get('pid', '?')} on {values.get('host', '?')}"
