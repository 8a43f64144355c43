"""``--target=tpu_vm``: runs on queued resources of Cloud TPU, which gcloud creates, replaces and deletes."""

import dataclasses
import os
import secrets
import shlex
import signal
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from etils import epath

from launch import bundle, gcloud, jobs, state
from launch.jobs import Launch
from launch.restarts import Restarts
from launch.settings import Settings
from launch.slices import Slices
from launch.slot import ABSENT, Request, Slot
from scaling import exit_codes
from scaling.runs.lock import held
from scaling.runs.paths import LOG
from scaling.sweep.states import FAILED, FINISHED, RUNNING, STOPPED, WAITING
from scaling.train.signals import ORDERS, stops

_SLEEP_SECONDS = 0.2  # at a time, so that a signal is noticed
_KEPT = ("zone", "project", "topology", "slices", "runtime_version", "spot", "reserved", "service_account", "labels")


class Launcher:
    """Runs all runs of a launch on a limited number of queued resources at a time."""

    def __init__(self, folder: epath.Path, values: dict[str, Any], chosen: Settings, poll_seconds: float = 20.0):
        """Args: the folder of ``launch.json``, its content (``planned``), the settings, seconds between polls."""
        self.values, self._folder, self._chosen, self._poll = values, folder, chosen, poll_seconds
        self._lock = threading.RLock()
        self._asked: list[int] = []
        self._refused = False  # a slot has failed for good, so all others end
        request = request_of(values, folder, chosen)
        self.slots = [self._slot(one, request) for one in values["slots"]]

    def run(self, stopping: int = 0) -> int:
        """Works until all runs have ended and no machines are held.

        Args:
            stopping: a signal that counts as received, so that runs are stopped and machines deleted; 0 = none.

        Returns:
            0 if all runs finished; the code of a received signal; or that of the first run that failed.

        Raises:
            ValueError: gcloud refuses (no permission, wrong flags).
        """
        self._asked = [stopping] if stopping else []
        before = {number: signal.signal(number, self._note) for number in stops()}
        try:
            self._save()
            with ThreadPoolExecutor(max(1, len(self.slots))) as pool:
                for done in [pool.submit(self._serve, slot) for slot in self.slots]:
                    done.result()
            if len(self._asked) > 1 and (kept := [slot.name for slot in self.slots if slot.stage != ABSENT]):
                self._say(f"left behind, and billed: {', '.join(kept)}; scaling stop {self._folder}")
        except Exception:
            self._say(f"to delete the machines: scaling stop {self._folder}")
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if len(self._asked) < 2:
            self._sweep_up()
        return self._end()

    def _serve(self, slot: Slot) -> None:
        """Serves one slot, in a thread of its own, so that long calls do not delay the others."""
        try:
            while not slot.idle or (self._waiting() and not self._asked):
                if self._refused or len(self._asked) > 1:
                    return
                asked = len(self._asked)  # a signal after this ends the pause below
                slot.tick(bool(asked))
                until = time.monotonic() + self._poll
                while time.monotonic() < until and len(self._asked) == asked and not self._refused:
                    time.sleep(min(_SLEEP_SECONDS, self._poll))
        except BaseException:
            self._refused = True
            raise

    def _sweep_up(self) -> None:
        """Deletes resources that Cloud TPU created for requests whose answers were lost."""
        if not self.slots:
            return
        calls = self.slots[0].calls
        try:
            for name in left_over(calls, self.values["id"]):
                self._say(f"{name}: left over; deleting")
                gcloud.run(calls.delete(name))
        except gcloud.GcloudError as error:
            self._say(f"resources may be left over ({error}); to delete them: scaling stop {self._folder}")

    def _end(self) -> int:
        ends = {job["state"] for job in self.values["jobs"].values()}
        self.values["state"] = FAILED if FAILED in ends else FINISHED if ends == {FINISHED} else STOPPED
        self._save()
        if self._asked:
            return exit_codes.OF_SIGNAL[signal.Signals(self._asked[0])]
        codes = [job["exit_code"] for job in self.values["jobs"].values() if job["state"] == FAILED]
        return (codes[0] if codes[0] > 0 else exit_codes.BUG) if codes else exit_codes.OK

    def _slot(self, values: dict[str, Any], request: Request) -> Slot:
        counts = Restarts(self._chosen.max_restarts, 15 * self._chosen.first_delay)
        return Slot(values, request, counts, self._next_job, self._job, self._save, self._say, self._log)

    def _waiting(self) -> list[dict[str, Any]]:
        return [job for job in self.values["jobs"].values() if job["state"] == WAITING]

    def _next_job(self) -> dict[str, Any] | None:
        with self._lock:
            for job in self._waiting():
                job["state"] = RUNNING
                return job
        return None

    def _job(self, name: str) -> dict[str, Any]:
        return self.values["jobs"][name]

    def _save(self) -> None:
        with self._lock:
            state.write(self._folder, self.values)

    def _say(self, text: str) -> None:
        with self._lock:
            state.note(self.values, text)
            print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    def _log(self, name: str, data: bytes) -> None:
        """Appends the output of a run to its log and prints it, with the run's name if there are several runs."""
        path = Path(self._folder) / name / LOG
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(data)
        several = f"{name}: " if len(self.values["jobs"]) > 1 else ""
        for line in data.decode(errors="replace").splitlines():
            print(several + line, file=sys.stderr, flush=True)

    def _note(self, number: int, frame: object) -> None:
        if number in ORDERS or not self._asked:  # a repeated warning does not count as a second order to stop
            self._asked.append(number)


def planned(launch: Launch, options: Mapping[str, Any], parallel: int, known: dict[str, Any]) -> dict[str, Any]:
    """The state of a launch that begins, or continues from the state ``known``.

    Finished runs stay finished; failed and stopped runs are tried again.

    Raises:
        ValueError: machines of a launch with other options or other knobs still exist.
    """
    wanted = {key: options[key] for key in _KEPT}
    slots = [slot for slot in known.get("slots", []) if slot["stage"] != ABSENT]
    if slots and known["cloud"] != wanted:
        raise ValueError(
            f"{', '.join(slot['resource'] for slot in slots)} still exist from a launch with other options; use the "
            "same options, or stop it first (scaling stop)"
        )
    if slots:
        open_jobs = [name for name, job in known["jobs"].items() if job["state"] != FINISHED]
        jobs.refuse_changed(launch, open_jobs)
        if lost := {slot["job"] for slot in slots if slot.get("job")} - {run.name for run in launch.runs}:
            raise ValueError(
                f"{', '.join(sorted(lost))} is on machines and not among these runs; use the same config, or stop it "
                "first (scaling stop)"
            )
    found = {} if not known else dict(known)
    number = known["id"] if slots else secrets.token_hex(3)
    if not slots:
        for job in found.get("jobs", {}).values():  # the machines that knew the last start are gone
            job["attempts"] += 1
    found |= {"target": "tpu_vm", "id": number, "name": launch.name, "state": RUNNING, "cloud": wanted}
    before, held_jobs = found.get("jobs", {}), {slot.get("job") for slot in slots}
    found["jobs"] = {}
    for run in launch.runs:
        job = {"name": run.name, "workdir": run.config.workdir, "attempts": 1, "state": WAITING}
        job |= before.get(run.name, {}) | {"exit_code": None, "reason": ""}
        if job["state"] != FINISHED:
            job["state"] = RUNNING if run.name in held_jobs else WAITING
        job["restarts"] = dataclasses.asdict(Restarts(**job.get("restarts", {})))
        job["restarts"] |= {"in_vain": 0, "most": options["max_restarts"], "first_delay": options["first_delay"]}
        found["jobs"][run.name] = job
    left = sum(job["state"] != FINISHED for job in found["jobs"].values())
    taken = {slot["resource"] for slot in slots}
    for index in range(min(parallel or 1, left)):
        resource = f"{jobs.label(launch.name, 30)}-{number}-{index}"
        if resource not in taken and len(slots) < min(parallel or 1, left):
            new = {"resource": resource, "stage": ABSENT, "job": "", "offset": 0, "hosts": 0, "cloud_state": ""}
            slots.append(new)
    found["slots"] = slots
    return found


def request_of(values: dict[str, Any], folder: epath.Path, chosen: Settings) -> Request:
    """The request to Cloud TPU of the state of a launch."""
    cloud, number = values["cloud"], values["id"]
    return Request(
        gcloud.Gcloud(cloud["zone"], cloud["project"]),
        Slices(cloud["topology"], cloud["slices"]),
        cloud["runtime_version"],
        {jobs.LABEL: number} | cloud["labels"],
        f"scaling-{number}",
        Path(folder) / f"scaling-{number}.tar.gz",
        cloud["spot"],
        cloud["reserved"],
        cloud["service_account"],
        stall_seconds=chosen.stall_seconds,
        grace_seconds=chosen.grace_seconds,
    )


def commands(values: dict[str, Any], folder: epath.Path, chosen: Settings) -> list[str]:
    """All commands of a launch in their order, as a user could type them."""
    request, lines = request_of(values, folder, chosen), []
    for slot in values["slots"]:
        name = slot["resource"]
        several = [request.create(name), request.calls.describe(name), request.copy(name), request.unpack(name)]
        several.append(request.remote(name, "prepare"))
        lines += [shlex.join(one) for one in several]
    first = values["slots"][0]["resource"] if values["slots"] else ""
    for job in values["jobs"].values():
        if job["state"] == WAITING:
            more = (f"--job={job['name']}", f"--attempt={job['attempts']}")
            lines.append(shlex.join(request.remote(first, "start", *more)))
    lines += [shlex.join(request.calls.delete(slot["resource"])) for slot in values["slots"]]
    return lines


def run(launch: Launch, values: dict[str, Any], chosen: Settings, poll_seconds: float) -> int:
    """Runs a launch that ``planned`` returned to its end; see ``Launcher.run``."""
    folder = launch.state_folder
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder / state.LOCK, f"another launcher works on {folder}"):
        values["launcher"] = state.identity(os.getpid())
        jobs.write_plans(launch)
        archive = request_of(values, folder, chosen).archive
        if not archive.exists():
            values["commit"] = bundle.make(launch, archive)
        return Launcher(folder, values, chosen, poll_seconds).run()


def stop(folder: epath.Path, values: dict[str, Any], chosen: Settings, poll_seconds: float = 5.0) -> list[str]:
    """Stops the runs of a launch whose launcher is gone, deletes its machines, and checks that none are left.

    Returns:
        Names of machines that are left.
    """
    with held(folder / state.LOCK, f"a launcher still works on {folder}"):
        Launcher(folder, values, chosen, poll_seconds).run(stopping=signal.SIGTERM)
    try:
        return left_over(request_of(values, folder, chosen).calls, values["id"])
    except gcloud.GcloudError as error:
        return [f"unknown resources, because gcloud could not list them ({error})"]


def left_over(calls: gcloud.Gcloud, number: str) -> list[str]:
    """Requests of a launch that still exist and are not being deleted.

    Raises:
        GcloudError: Cloud TPU could not be asked.
    """
    return [name for name in gcloud.names(calls) if f"-{number}-" in name]
