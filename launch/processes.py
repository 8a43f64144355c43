"""Starts the processes of one run on this machine together, and ends them together."""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch import state

_POLL_SECONDS = 0.1
# Waits for a byte and then becomes the command, with the same process id. Ends if the process that would write the byte
# is gone.
_WAITS = """
import os, sys
waits = int(sys.argv[1])
if os.read(waits, 1):
    os.close(waits)
    os.execv(sys.argv[2], sys.argv[2:])
"""


def free_port() -> int:
    """A port of this machine that is not in use."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@dataclasses.dataclass
class Child:
    """A process that this supervisor started, or, if ``process`` is None, an earlier one.

    The exit code of a process that an earlier supervisor started is not known, so ``code`` is always None for it.
    """

    identity: dict[str, Any]
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def running(self) -> bool:
        return state.alive(self.identity) if self.process is None else self.process.poll() is None

    @property
    def code(self) -> int | None:
        return None if self.process is None else self.process.poll()

    def send(self, number: int, group: bool = False) -> None:
        """Sends a signal to the process if it still runs; with ``group`` also to the processes that it started."""
        if not self.running:
            return
        try:
            if group:
                os.killpg(self.identity["pid"], number)
            else:
                os.kill(self.identity["pid"], number)
        except (ProcessLookupError, PermissionError):
            pass


@dataclasses.dataclass
class Gate:
    """Holds started processes back until they are noted in ``launch.json``; they end if this process dies before."""

    descriptor: int
    count: int

    def open(self) -> None:
        """Lets all processes continue."""
        with contextlib.suppress(BrokenPipeError):  # they have been killed
            os.write(self.descriptor, b"." * self.count)
        os.close(self.descriptor)


def start(
    commands: Sequence[Sequence[str]], logs: Sequence[Path], environments: Sequence[Mapping[str, str]]
) -> tuple[list[Child], Gate]:
    """Starts a process for each command, in a session of its own, so that only this process passes signals on to it.

    Returns:
        The ``Child`` of each, and the gate that they wait at before they become their commands.

    Raises:
        OSError: a process could not be started; those before it are ended.
    """
    children: list[Child] = []
    waits, gate = os.pipe()
    try:
        for command, log, environment in zip(commands, logs, environments, strict=True):
            with log.open("ab") as file:
                process = subprocess.Popen(
                    [sys.executable, "-S", "-E", "-c", _WAITS, str(waits), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    env=environment,
                    start_new_session=True,
                    pass_fds=(waits,),
                )
            children.append(Child(state.identity(process.pid), process))
    except OSError:
        end(children, 0)
        os.close(gate)
        raise
    finally:
        os.close(waits)
    return children, Gate(gate, len(children))


def end(children: Sequence[Child], grace_seconds: float) -> None:
    """Asks all to end, waits, and kills those that still run, also frozen ones, with the processes they started."""
    for child in children:
        child.send(signal.SIGTERM)
    wait(children, grace_seconds)
    for child in children:
        child.send(signal.SIGKILL, group=True)
    wait(children, 30.0)


def wait(children: Sequence[Child], seconds: float) -> bool:
    """Waits until all have ended, at most so many seconds; returns whether they have."""
    until = time.monotonic() + seconds
    while any(child.running for child in children):
        if time.monotonic() >= until:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def environments(count: int, environment: Mapping[str, str]) -> list[dict[str, str]]:
    """The environment of each process; the GPUs in ``CUDA_VISIBLE_DEVICES`` are divided among the processes.

    Raises:
        ValueError: the GPUs cannot be divided evenly.
    """
    visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if count == 1 or not visible:
        return [dict(environment) for _ in range(count)]
    if len(visible) % count:
        raise ValueError(f"--processes={count} cannot share {len(visible)} GPUs evenly; use a number that divides them")
    each = len(visible) // count
    parts = [visible[i * each : (i + 1) * each] for i in range(count)]
    return [{**environment, "CUDA_VISIBLE_DEVICES": ",".join(part)} for part in parts]
