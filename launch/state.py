"""Reads and writes ``launch.json``, the state of a launcher, so that it can be killed and restarted at any time."""

import json
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from etils import epath

from scaling import durable
from scaling.config.refusal import kind, shown

FILE = "launch.json"
LOCK = ".launch.lock"  # held by the launcher, or by the supervisor of a run
# part of the state -> its type, and the type of its elements
_PARTS: dict[str, tuple[type, type | tuple[type, ...]]] = {
    "target": (str, str),
    "id": (str, str),
    "state": (str, str),
    "jobs": (dict, dict),
    "runs": (list, str),
    "slots": (list, dict),
    "children": (list, dict),
    "supervisor": (dict, object),
    "launcher": (dict, object),
    "restarts": (dict, int),
    "cloud": (dict, object),
    "events": (list, dict),
}
_NEEDED = dict.fromkeys(("gke", "skypilot", "slurm"), ("id", "name", "cloud", "jobs")) | {
    "tpu_vm": ("id", "cloud", "jobs", "slots")
}
_JOB = ("name", "workdir", "state")
_EVENTS = 50  # the newest are kept


def read(folder: epath.PathLike) -> dict[str, Any]:
    """The state in a folder; empty if there is none.

    Raises:
        ValueError: the file is damaged.
    """
    path = epath.Path(folder) / FILE
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, not {kind(values)}")
    _check(path, values)
    return values


def _check(path: epath.Path, values: dict[str, Any]) -> None:
    """Refuses a file that no launcher wrote: another program's file of this name, or an edited one."""
    for name, (right, inside) in _PARTS.items():
        found = values.get(name)
        parts = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
        if found is not None and not (isinstance(found, right) and all(isinstance(part, inside) for part in parts)):
            raise ValueError(f"{path} was not written by a launcher: its {name!r} is {shown(found)}")
    needed: tuple[str, ...] = _NEEDED.get(values.get("target", ""), ())
    lacking = [name for name in needed if name not in values]
    lacking += [f"jobs.{name}.{key}" for name, job in values.get("jobs", {}).items() for key in _JOB if key not in job]
    processes = [values.get("supervisor"), values.get("launcher"), *values.get("children", ())]
    lacking += [f"{key} of a process" for one in processes if one for key in ("pid", "start", "host") if key not in one]
    if lacking:
        raise ValueError(f"{path} was not written by a launcher: it has no {lacking[0]}")


def write(folder: epath.PathLike, values: dict[str, Any]) -> None:
    """Replaces the state of a folder as a whole, and syncs it to the disk."""
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    durable.replace_text(folder / FILE, json.dumps(values, indent=2), synced=True)


def note(values: dict[str, Any], text: str, **more: Any) -> None:
    """Adds an event to a state, with the time."""
    events = values.setdefault("events", [])
    events.append({"time": round(time.time(), 3), "event": text} | more)
    del events[:-_EVENTS]


def identity(pid: int) -> dict[str, Any]:
    """A process as it can be found again: its number, its start, its machine (numbers are given out anew)."""
    return {"pid": pid, "start": started(pid), "host": socket.gethostname()}


def alive(process: dict[str, Any] | None) -> bool:
    """Whether a process that ``identity`` described is still there, on this machine."""
    if not process or not here(process):
        return False
    start = started(process["pid"])
    return bool(start) and start == process["start"] and _letter(process["pid"]) != "Z"


def here(process: dict[str, Any]) -> bool:
    """Whether the process was started on this machine."""
    return process.get("host") == socket.gethostname()


def stopped(pid: int) -> bool:
    """Whether SIGSTOP or a debugger has stopped a process; False if the system does not tell."""
    return _letter(pid) in ("T", "t")


def started(pid: int) -> str:
    """When a process began, in a format of the system; empty if there is no process with this id."""
    if Path("/proc/self/stat").exists():
        fields = _stat(pid)
        return f"{_boot()}:{fields[19]}" if fields else ""
    found = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return found.stdout.strip()


def _letter(pid: int) -> str:
    fields = _stat(pid)
    return fields[0] if fields else ""


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on; the second, the name, may contain spaces."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _boot() -> str:
    """An id of this start of the machine, from which start times count."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        return ""
