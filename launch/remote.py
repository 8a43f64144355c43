"""Runs on a TPU VM: installs the package, starts a run, reports its state, shows its log, stops it.

The launcher copies this file to the machine and calls it over ssh. It uses only the standard library, because the
Python of the machine (3.10) runs it. Each answer is one line, ``@launch`` and a JSON object, so that it can be found
among other output of ssh.
"""

import argparse
import base64
import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

MARK = "@launch "
LOG_BYTES = 1 << 18  # limit of the log in one answer
_PYTHON = "3.12"


def main() -> None:
    """Does what the arguments say in ``--folder`` and prints the answer."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("verb", choices=("prepare", "start", "monitor", "status", "log", "stop"))
    parser.add_argument("--folder", required=True)
    parser.add_argument("--job", default="")
    parser.add_argument("--attempt", type=int, default=0)
    parser.add_argument("--offset", type=int, default=0)
    parser.add_argument("--grace", type=float, default=60.0)
    options = parser.parse_args()
    folder = Path(options.folder).absolute()
    job = folder / "jobs" / options.job
    if options.verb == "monitor":
        _monitor(folder, job, options.attempt)
        return
    answer = {
        "prepare": lambda: _prepare(folder),
        "start": lambda: _start(folder, job, options.attempt),
        "status": lambda: _status(job),
        "log": lambda: _log(job, options.offset),
        "stop": lambda: _stop(job, options.grace),
    }[options.verb]()
    print(MARK + json.dumps({"host": socket.gethostname(), "home": str(folder)} | answer), flush=True)


def _prepare(folder):
    """Installs a newer Python, the package and its dependencies, unless that was done before."""
    done = folder / ".prepared"
    with _locked(folder / ".lock"):
        if not done.exists():
            uv = [shutil.which("uv")] if shutil.which("uv") else [sys.executable, "-m", "uv"]
            if len(uv) > 1:
                subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--user", "uv"], check=True)
            venv = folder / "venv"
            if not venv.exists():
                subprocess.run([*uv, "venv", "--quiet", f"--python={_PYTHON}", str(venv)], check=True)
            package = f"{folder}[tpu,data]"
            python = f"--python={venv / 'bin' / 'python'}"
            subprocess.run([*uv, "pip", "install", "--quiet", python, "--editable", package], check=True)
            done.write_text("")
    return {"prepared": True}


def _start(folder, job, attempt):
    """Starts an attempt in the background, unless the attempt of this number was started before."""
    with _locked(job / ".lock"):
        known = _read(job / "attempt.json")
        if known.get("attempt") != attempt:
            _end(known, 5.0)
            command = [sys.executable, __file__, "monitor", f"--folder={folder}", f"--job={job.name}"]
            with (job / "train.log").open("ab") as log:
                monitor = subprocess.Popen(
                    [*command, f"--attempt={attempt}"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            _write(job / "attempt.json", {"attempt": attempt, "pid": monitor.pid, "start": _started(monitor.pid)})
    return _status(job)


def _monitor(folder, job, attempt):
    """Runs the training, passes signals on to it and writes its exit code."""
    command = [str(folder / "venv" / "bin" / "python"), "-m", "scaling", "train", f"--config={job / 'plan.json'}"]
    child = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU):
        signal.signal(number, lambda number, _: child.send_signal(number))
    _write(job / "exit.json", {"attempt": attempt, "code": child.wait()})


def _status(job):
    known, ended = _read(job / "attempt.json"), _read(job / "exit.json")
    log = job / "train.log"
    answer = {"attempt": known.get("attempt", 0), "log": log.stat().st_size if log.exists() else 0}
    if not known:
        return answer | {"state": "absent"}
    if ended.get("attempt") == known["attempt"]:
        return answer | {"state": "exited", "code": ended["code"]}
    return answer | ({"state": "running"} if _alive(known) else {"state": "exited", "code": -9})


def _log(job, offset):
    """Bytes of the log from ``offset`` on, at most ``LOG_BYTES``."""
    try:
        with (job / "train.log").open("rb") as file:
            file.seek(offset)
            data = file.read(LOG_BYTES)
    except OSError:
        data = b""
    return {"offset": offset + len(data), "text": base64.b64encode(data).decode()}


def _stop(job, grace):
    _end(_read(job / "attempt.json"), grace)
    return _status(job)


def _end(known, grace):
    """Asks an attempt to end, waits, and kills it with all processes that it started if it still runs."""
    if not _alive(known):
        return
    os.kill(known["pid"], signal.SIGTERM)
    until = time.monotonic() + grace
    while _alive(known) and time.monotonic() < until:
        time.sleep(0.1)
    with contextlib.suppress(ProcessLookupError):
        if _alive(known):
            os.killpg(known["pid"], signal.SIGKILL)


def _alive(known):
    return bool(known) and bool(_started(known["pid"])) and _started(known["pid"]) == known["start"]


def _started(pid):
    """When a process began, because process ids are used again; empty if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


@contextlib.contextmanager
def _locked(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _write(path, values):
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(values))
    partial.replace(path)


if __name__ == "__main__":
    main()
