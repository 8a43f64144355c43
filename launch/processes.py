"""The processes of one run on this machine: started together, ended together."""

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
# Reads a byte, and is gone if whoever was to write it is; then becomes the command, under the same number.
_WAITS = """
import os, sys
waits = int(sys.argv[1])
if os.read(waits, 1):
    os.close(waits)
    os.execv(sys.argv[2], sys.argv[2:])
"""


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@dataclasses.dataclass
class Child:
    """A process that we started, or (``process`` None) that an earlier supervisor did.

    Of the latter the system keeps no exit code for us: it reads as None even when it has ended.
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
        """Signals it, with ``group`` its own children too, if it is still itself."""
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
    """Holds back processes that have been started until somebody has noted them; if we die before, they end."""

    descriptor: int
    count: int

    def open(self) -> None:
        """Lets all of them go on."""
        with contextlib.suppress(BrokenPipeError):  # they have been killed
            os.write(self.descriptor, b"." * self.count)
        os.close(self.descriptor)


def start(
    commands: Sequence[Sequence[str]], logs: Sequence[Path], environments: Sequence[Mapping[str, str]]
) -> tuple[list[Child], Gate]:
    """Starts one process a command, each in a session of its own, so that signals reach it through us alone.

    Returns:
        ``Child`` of each, and what they wait for before they become their commands.

    Raises:
        OSError: one could not be started; those before it are ended.
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
    """Asks all to end, waits, and kills what is left with everything that it started (also what stands still)."""
    for child in children:
        child.send(signal.SIGTERM)
    wait(children, grace_seconds)
    for child in children:
        child.send(signal.SIGKILL, group=True)
    wait(children, 30.0)


def wait(children: Sequence[Child], seconds: float) -> bool:
    """Waits until all have ended; whether they have."""
    until = time.monotonic() + seconds
    while any(child.running for child in children):
        if time.monotonic() >= until:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def environments(count: int, environment: Mapping[str, str]) -> list[dict[str, str]]:
    """One a process: GPUs that are given by ``CUDA_VISIBLE_DEVICES`` are shared out.

    Raises:
        ValueError: they cannot be shared out evenly.
    """
    visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if count == 1 or not visible:
        return [dict(environment) for _ in range(count)]
    if len(visible) % count:
        raise ValueError(f"--processes={count} cannot share {len(visible)} GPUs evenly")
    each = len(visible) // count
    parts = [visible[i * each : (i + 1) * each] for i in range(count)]
    return [{**environment, "CUDA_VISIBLE_DEVICES": ",".join(part)} for part in parts]
