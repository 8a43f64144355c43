"""Submits runs to an engine that starts and restarts them itself (GKE, SkyPilot, Slurm), and watches them."""

import os
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from etils import epath

from launch import jobs, state
from launch.jobs import Launch, write_plans
from scaling import exit_codes
from scaling.runs.lock import held
from scaling.sweep.plan import Run
from scaling.sweep.states import FAILED, FINISHED, RUNNING, STOPPED, WAITING

GONE = "gone"  # the engine does not know the run, although it was not stopped from here
ENDS = (FINISHED, FAILED, STOPPED, GONE)


class EngineError(Exception):
    """A call to an engine failed; it may succeed when it is repeated."""


class Engine(Protocol):
    """The methods of an engine; arguments ``name`` are names that ``resource`` returns.

    Attributes:
        together: whether all runs are submitted by one command, and not each by its own.
    """

    together: bool

    def resource(self, run: Run) -> str:
        """The name of a run in the engine."""

    def typed(self, runs: Sequence[Run]) -> str:
        """The commands that do what ``start`` does, as a user could type them."""

    def start(self, runs: Sequence[Run]) -> None:
        """Submits those runs that do not exist or have failed."""

    def look(self, name: str) -> dict[str, Any]:
        """A dict of ``state``, ``restarts`` and ``reason``; empty if the run does not exist."""

    def stop(self, name: str) -> None:
        """Stops a run and releases its machines; does nothing if the run does not exist."""

    def logs(self, name: str, since: str) -> tuple[list[str], str]:
        """New lines of the first process, and the value of ``since`` for the next call."""


def planned(launch: Launch, target: str, cloud: Mapping[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """The state of a launch that begins or is continued.

    Raises:
        ValueError: the launch was started on another target, or with other options and may still run.
    """
    if known and known.get("target") != target:
        raise ValueError(
            f"{launch.state_folder} is a launch of --target={known.get('target')}; use another config.workdir"
        )
    if known and known["cloud"] != dict(cloud) and known.get("state") == RUNNING:
        raise ValueError(
            f"{launch.state_folder} was launched with other options; use the same options, or stop it first"
        )
    before = known.get("jobs", {})
    jobs.refuse_changed(launch, [n for n, job in before.items() if job.get("resource") and job["state"] not in ENDS])
    found_jobs = {}
    for run in launch.runs:
        job = {"name": run.name, "workdir": run.config.workdir, "state": WAITING, "reason": "", "since": ""}
        found_jobs[run.name] = job | before.get(run.name, {})
    found = {"target": target, "id": known.get("id") or secrets.token_hex(3), "name": launch.name, "state": RUNNING}
    return found | {"cloud": dict(cloud), "events": known.get("events", []), "jobs": found_jobs}


def run(engine: Engine, launch: Launch, values: dict[str, Any], follow: bool, poll_seconds: float) -> int:
    """Submits the runs that are not finished and watches them to their end.

    Ctrl-C ends the watching and not the runs.

    Returns:
        0 if all are finished (without ``follow``: submitted); 130 after ctrl-C; 1 if one failed.

    Raises:
        ValueError: the engine refuses a run; the runs before it are submitted.
    """
    folder = launch.state_folder
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder / state.LOCK, f"another launcher works on {folder}"):
        values["launcher"] = state.identity(os.getpid())
        write_plans(launch)
        for runs in groups(engine, launch.runs):
            for one in runs:
                values["jobs"][one.name] |= {"resource": engine.resource(one)}
            state.write(folder, values)  # before the runs exist, so that they can be stopped in any case
            wanted = [one for one in runs if values["jobs"][one.name]["state"] != FINISHED]
            try:
                engine.start(wanted)
            except EngineError as error:
                names = ", ".join(one.name for one in wanted)
                raise ValueError(f"{names} could not be submitted: {error}") from error
            for one in wanted:
                job = values["jobs"][one.name]
                job["state"] = WAITING
                _say(values, f"{one.name}: submitted as {job['resource']}")
        state.write(folder, values)
        if not follow:
            return exit_codes.OK
        try:
            return _watch(engine, folder, values, poll_seconds)
        except KeyboardInterrupt:
            print(f"the runs continue; to stop them: scaling stop {folder}", file=sys.stderr)
            return exit_codes.SIGINT


def groups(engine: Engine, runs: Sequence[Run]) -> list[Sequence[Run]]:
    """The runs that are submitted together."""
    return [runs] if engine.together else [[run] for run in runs]


def _watch(engine: Engine, folder: epath.Path, values: dict[str, Any], poll_seconds: float) -> int:
    several = len(values["jobs"]) > 1
    while True:
        for name, job in values["jobs"].items():
            if job["state"] in ENDS:
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
        if all(end in ENDS for end in ends):
            values["state"] = FINISHED if set(ends) == {FINISHED} else FAILED
            state.write(folder, values)
            return exit_codes.OK if values["state"] == FINISHED else exit_codes.BUG
        state.write(folder, values)
        time.sleep(poll_seconds)


def refresh(engine: Engine, job: dict[str, Any]) -> None:
    """Updates the state of a job from the engine.

    Raises:
        EngineError: the engine could not be asked.
    """
    found = engine.look(job["resource"])
    if not found:
        job["state"] = STOPPED if job["state"] == STOPPED else GONE
        return
    job |= {"state": found["state"], "restarts": {"total": found["restarts"]}, "reason": found["reason"]}


def stop(engine: Engine, folder: epath.Path, values: dict[str, Any]) -> list[str]:
    """Stops all runs; returns the names of those that could not be stopped."""
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
