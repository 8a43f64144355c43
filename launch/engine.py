"""Runs on an engine that starts and restarts them itself (GKE, SkyPilot): handed over, then only watched."""

import os
import secrets
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

from etils import epath

from launch import jobs, state
from launch.jobs import Launch, write_plans
from scaling import exit_codes
from scaling.runs.lock import held
from scaling.sweep.plan import Run
from scaling.sweep.states import FAILED, FINISHED, RUNNING, STOPPED, WAITING

GONE = "gone"  # nobody here stopped it, and the engine does not know it
_ENDS = (FINISHED, FAILED, STOPPED, GONE)


class EngineError(Exception):
    """A call to an engine that failed, and may not the next time."""


class Engine(Protocol):
    """What an engine must do; names are those of ``resource``."""

    def resource(self, run: Run) -> str:
        """The run's name there."""

    def typed(self, run: Run) -> str:
        """What ``start`` hands over, in words that can be typed."""

    def start(self, run: Run) -> None:
        """Hands a run over; one that is there and has not failed is left alone."""

    def look(self, name: str) -> dict[str, Any]:
        """``state``, ``restarts``, ``reason``; empty if it is not there."""

    def stop(self, name: str) -> None:
        """Ends a run and releases what it holds; one that is not there is none."""

    def logs(self, name: str, since: str) -> tuple[list[str], str]:
        """New lines of the first process, and where to go on."""


def planned(launch: Launch, target: str, cloud: Mapping[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """The state of a launch that begins or goes on.

    Raises:
        ValueError: runs of other options may still be there.
    """
    if known and known["cloud"] != dict(cloud) and known.get("state") == RUNNING:
        raise ValueError(f"{launch.state_folder} is a launch with other options; give those again, or stop it first")
    before = known.get("jobs", {})
    jobs.refuse_changed(launch, [n for n, job in before.items() if job.get("resource") and job["state"] not in _ENDS])
    found_jobs = {}
    for run in launch.runs:
        job = {"name": run.name, "workdir": run.config.workdir, "state": WAITING, "reason": "", "since": ""}
        found_jobs[run.name] = job | before.get(run.name, {})
    found = {"target": target, "id": known.get("id") or secrets.token_hex(3), "name": launch.name, "state": RUNNING}
    return found | {"cloud": dict(cloud), "events": known.get("events", []), "jobs": found_jobs}


def run(engine: Engine, launch: Launch, values: dict[str, Any], follow: bool, poll_seconds: float) -> int:
    """Hands over what is not finished and watches it to the end.

    Ctrl-C ends the watching, not the runs.

    Returns:
        0 if all are finished (without ``follow``: handed over); 130 after ctrl-C; 1 if one failed.

    Raises:
        ValueError: the engine refuses a run; those before it are handed over.
    """
    folder = launch.state_folder
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder / state.LOCK, f"another launcher works on {folder}"):
        values["launcher"] = state.identity(os.getpid())
        write_plans(launch, folder)
        for one in launch.runs:
            job = values["jobs"][one.name] | {"resource": engine.resource(one)}
            values["jobs"][one.name] = job
            state.write(folder, values)  # before it exists, so that it can be stopped
            if job["state"] == FINISHED:
                continue
            try:
                engine.start(one)
            except EngineError as error:
                raise ValueError(f"{one.name} could not be handed over: {error}") from error
            job["state"] = WAITING
            _say(values, f"{one.name}: handed over as {job['resource']}")
        state.write(folder, values)
        if not follow:
            return exit_codes.OK
        try:
            return _watch(engine, folder, values, poll_seconds)
        except KeyboardInterrupt:
            print(f"the runs go on; to end them: scaling stop {folder}", file=sys.stderr)
            return exit_codes.SIGINT


def _watch(engine: Engine, folder: epath.Path, values: dict[str, Any], poll_seconds: float) -> int:
    several = len(values["jobs"]) > 1
    while True:
        for name, job in values["jobs"].items():
            if job["state"] in _ENDS:
                continue
            try:
                refresh(engine, job)
                lines, job["since"] = (
                    engine.logs(job["resource"], job["since"]) if job["state"] != WAITING else ([], "")
                )
            except EngineError as error:
                _say(values, f"{name}: {error} (trying again)")
                continue
            for line in lines:
                print(f"{name}: {line}" if several else line, file=sys.stderr, flush=True)
            if job["state"] != job.get("said"):
                reason = f", {job['reason']}" if job["reason"] else ""
                _say(values, f"{name}: {job['state']}{reason}")
                job["said"] = job["state"]
        ends = [job["state"] for job in values["jobs"].values()]
        if all(end in _ENDS for end in ends):
            values["state"] = FINISHED if set(ends) == {FINISHED} else FAILED
            state.write(folder, values)
            return exit_codes.OK if values["state"] == FINISHED else exit_codes.BUG
        state.write(folder, values)
        time.sleep(poll_seconds)


def refresh(engine: Engine, job: dict[str, Any]) -> None:
    """Takes over how the engine sees a run.

    Raises:
        EngineError: it could not be asked.
    """
    found = engine.look(job["resource"])
    if not found:
        job["state"] = STOPPED if job["state"] == STOPPED else GONE
        return
    job |= {"state": found["state"], "restarts": {"total": found["restarts"]}, "reason": found["reason"]}


def stop(engine: Engine, folder: epath.Path, values: dict[str, Any]) -> list[str]:
    """Ends all runs; returns the names of those that could not be ended."""
    left = []
    for job in values["jobs"].values():
        if not job.get("resource"):
            continue
        try:
            engine.stop(job["resource"])
        except EngineError as error:
            left.append(job["resource"])
            _say(values, f"{job['name']}: {error}")
            continue
        if job["state"] != FINISHED:
            job["state"] = STOPPED
            _say(values, f"{job['name']}: stopped")
    values["state"] = RUNNING if left else STOPPED
    state.write(folder, values)
    return left


def _say(values: dict[str, Any], text: str) -> None:
    state.note(values, text)
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
