"""One slot of ``--target=tpu_vm``: a queued resource that runs one job after another, and is replaced when it is lost.

Each stage is written to ``launch.json`` and can be repeated, because the names of resources and the numbers of starts
are written before they are used. So the launcher may be killed at any point.
"""

import base64
import contextlib
import dataclasses
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch import gcloud
from launch.gcloud import EXISTS, NOT_FOUND, REFUSED, GcloudError
from launch.remote import LOG_BYTES
from launch.restarts import DONE, RESTART, Restarts, describe, of_group
from launch.slices import Slices
from scaling import exit_codes
from scaling.sweep.states import FAILED, FINISHED, STOPPED

ABSENT, REQUESTED, PREPARING, READY, RUNNING, DELETING = (
    "absent", "requested", "preparing", "ready", "running", "deleting",
)  # fmt: skip
_GONE = ("SUSPENDING", "SUSPENDED", "DELETING")
_STEP = re.compile(r"^step (\d+)/", re.MULTILINE)  # the lines of training; see scaling.train.metrics.Console
_LINGER_SECONDS = 60.0  # for which the other processes may run after one has failed


@dataclasses.dataclass(frozen=True)
class Request:
    """What is requested from Cloud TPU, the same for all slots.

    Attributes:
        calls: calls of gcloud for a project and zone.
        slices: slices of one run.
        runtime_version: image of the machines.
        labels: labels of the resources.
        folder: folder on the machines.
        archive: code and plans, on this machine.
        spot: whether machines are preemptible.
        reserved: whether they come from a reservation.
        service_account: account of the machines; empty = the default.
        lost_seconds: machines that Cloud TPU calls active count as lost if they do not answer for so long.
        stall_seconds: a run is started again if its log gets no line for so long; 0 = never.
        grace_seconds: time between asking a run to end and killing it.
    """

    calls: gcloud.Gcloud
    slices: Slices
    runtime_version: str
    labels: dict[str, str]
    folder: str
    archive: Path
    spot: bool = False
    reserved: bool = False
    service_account: str = ""
    lost_seconds: float = 900.0
    stall_seconds: float = 1800.0
    grace_seconds: float = 60.0

    def create(self, name: str) -> list[str]:
        return self.calls.create(
            name, self.slices, self.runtime_version, self.labels, self.spot, self.reserved, self.service_account
        )

    def copy(self, name: str) -> list[str]:
        return self.calls.copy(name, str(self.archive), self.archive.name)

    def unpack(self, name: str) -> list[str]:
        return self.calls.call(name, ["tar", "-xzf", self.archive.name, f"--one-top-level={self.folder}"])

    def remote(self, name: str, verb: str, *more: str, everywhere: bool = True) -> list[str]:
        command = ["python3", f"{self.folder}/launch/remote.py", verb, f"--folder={self.folder}", *more]
        return self.calls.call(name, command, everywhere)


class Slot:
    """A slot. Its whole state is ``values``, a part of ``launch.json``."""

    def __init__(
        self,
        values: dict[str, Any],
        request: Request,
        restarts: Restarts,
        next_job: Callable[[], dict[str, Any] | None],
        job: Callable[[str], dict[str, Any]],
        save: Callable[[], None],
        say: Callable[[str], None],
        log: Callable[[str, bytes], None],
    ):
        """Makes a slot.

        Args:
            values: its state.
            request: what to request from Cloud TPU.
            restarts: counts failures to get machines.
            next_job: returns a waiting job and marks it as running; None if no job waits.
            job: returns a job by name.
            save: writes ``launch.json``.
            say: notes an event and prints it.
            log: is called with the name of a job and its new output.
        """
        self.values, self._request, self._restarts = values, request, restarts
        self._next_job, self._job, self._save, self._say, self._log = next_job, job, save, say, log
        self._not_before = 0.0
        self._heard = time.monotonic()
        self._failed: float | None = None  # since when a process of the group has failed
        self._grown = time.monotonic()  # when the log last grew

    @property
    def name(self) -> str:
        return self.values["resource"]

    @property
    def calls(self) -> gcloud.Gcloud:
        """The calls of gcloud for its project and zone."""
        return self._request.calls

    @property
    def stage(self) -> str:
        return self.values["stage"]

    @property
    def idle(self) -> bool:
        """Whether no machines are held and no job is assigned."""
        return self.stage == ABSENT and not self.values.get("job")

    def tick(self, stopping: bool) -> None:
        """Takes the next step if it is due.

        Raises:
            ValueError: gcloud refuses, and would refuse again.
        """
        if time.monotonic() < self._not_before and not stopping:
            return
        try:
            try:
                if stopping and self.stage != DELETING:
                    self._stop()
                else:
                    getattr(self, f"_{self.stage}")()
                self._heard = time.monotonic()
            except GcloudError as error:
                self._lost(error)
        except OSError as error:  # the disk here may be full; an end now would leave billed machines
            self._wait(min(30.0, self._restarts.first_delay * 5))
            with contextlib.suppress(OSError):
                self._say(f"{self.name}: this machine: {error} (trying again)")

    def _absent(self) -> None:
        job = self.values.get("job") or self._take()
        if not job:
            return
        found, _ = gcloud.state(self._request.calls, self.name)
        if not found:
            self._move(REQUESTED, f"{self.name}: requesting {self._request.slices.count} x {self._request.slices.name}")
            try:
                gcloud.run(self._request.create(self.name))
            except GcloudError as error:
                if error.kind == REFUSED:
                    self._move(ABSENT)
                    raise
                if error.kind == EXISTS:
                    self._wait(self._restarts.first_delay)
                else:  # if the connection was lost, the request may exist; it is deleted then
                    self._retry(f"{self.name}: {error}")
            return
        self._move(REQUESTED, f"{self.name}: found, {found}")

    def _requested(self) -> None:
        found, reason = gcloud.state(self._request.calls, self.name)
        if found == "ACTIVE":
            self._move(PREPARING, f"{self.name}: active; copying the code")
        elif found == "FAILED" or found in _GONE:
            self._retry(f"{self.name}: {found}{': ' * bool(reason)}{reason}")
        elif not found:
            self._move(ABSENT)
        else:
            self.values["cloud_state"] = found

    def _preparing(self) -> None:
        if self._taken_away():
            return
        gcloud.run(self._request.copy(self.name))
        gcloud.run(self._request.unpack(self.name))
        gcloud.run(self._request.remote(self.name, "prepare"))
        self.values["offset"] = 0
        self._move(READY, f"{self.name}: installed")

    def _ready(self) -> None:
        name = self.values.get("job") or self._take()
        if not name:
            self._move(DELETING, f"{self.name}: no run is waiting; deleting")
            return
        job = self._job(name)
        answers = self._ask("start", f"--job={name}", f"--attempt={job['attempts']}")
        self.values["hosts"] = len(answers)
        self._failed, self._grown = None, time.monotonic()
        self._restarts.in_vain = 0  # only now, so that machines on which no run starts are not requested for ever
        self._move(RUNNING, f"{name}: start {job['attempts']} on {self.name}, {len(answers)} hosts")

    def _running(self) -> None:
        if self._taken_away():
            return
        name = self.values["job"]
        answers = self._ask("status", f"--job={name}")
        self._fetch_log(name)
        ended = [answer for answer in answers if answer["state"] != "running"]
        code = of_group([answer.get("code", -9) for answer in ended])
        if len(ended) < len(answers):
            self._failed = (self._failed or time.monotonic()) if ended and code else None
            silence = time.monotonic() - self._grown
            if self._request.stall_seconds and silence > self._request.stall_seconds:
                self._say(f"{name}: its log has not grown for {silence:.0f} s; ending it")
                code = exit_codes.HUNG
            elif self._failed is None or time.monotonic() - self._failed < _LINGER_SECONDS:
                return
            self._ask("stop", f"--job={name}", "--grace=5")
        self._ended(name, code)

    def _deleting(self) -> None:
        found, _ = gcloud.state(self._request.calls, self.name)
        if not found:
            self.values["cloud_state"] = ""
            self._move(ABSENT, f"{self.name}: deleted")
        elif found != "DELETING":
            try:
                gcloud.run(self._request.calls.delete(self.name))
            except GcloudError as error:
                if error.kind != NOT_FOUND:
                    raise

    def _stop(self) -> None:
        """Lets the run save, and then deletes the machines."""
        if self.stage == RUNNING:
            name = self.values["job"]
            self._say(f"{name}: stopping, up to {self._request.grace_seconds:.0f} s")
            try:
                self._ask("stop", f"--job={name}", f"--grace={self._request.grace_seconds}")
                self._fetch_log(name)
            except GcloudError as error:
                self._say(f"{name}: could not be asked to stop ({error})")
        if self.values.get("job"):
            self._job(self.values["job"])["state"] = STOPPED
        self.values["job"] = ""
        self._move(DELETING, f"{self.name}: deleting" * (self.stage != ABSENT))

    def _taken_away(self) -> bool:
        """Whether the machines are gone or not usable; if they are gone, they are replaced."""
        try:
            found, reason = gcloud.state(self._request.calls, self.name)
        except GcloudError:
            self._heard = time.monotonic()  # the network here may be at fault, so the machines do not count as silent
            raise
        self.values["cloud_state"] = found
        if found == "ACTIVE":
            return False
        if found and found != "FAILED" and found not in _GONE:
            return True  # not usable now: check again later
        self._replace(f"preempted ({found or 'gone'}{', ' * bool(reason)}{reason})")
        return True

    def _replace(self, why: str) -> None:
        """Deletes the rest of the machines and requests new ones for the same run."""
        if self.stage == RUNNING:
            self._say(f"{self.name}: {why}")
            self._ended(self.values["job"], exit_codes.SIGTERM, replace=True)
        elif self.values.get("job"):
            self._retry(f"{self.name}: {why}")
        else:
            self._move(DELETING, f"{self.name}: {why}")

    def _ended(self, name: str, code: int, replace: bool = False) -> None:
        """Handles the end of an attempt: the run is finished, has failed, or is started again."""
        job = self._job(name)
        counts = Restarts(**job["restarts"])
        what = counts.after(code)
        job["restarts"] = dataclasses.asdict(counts)
        if what == RESTART:
            job["attempts"] += 1
            self._wait(counts.delay)
            self._move(
                DELETING if replace else READY, f"{name}: {describe(code)}; starting again in {counts.delay:g} s"
            )
            return
        job |= {
            "state": FINISHED if what == DONE else FAILED,
            "exit_code": code,
            "reason": describe(code) if code else "",
        }
        self.values["job"] = ""
        self._move(
            DELETING if replace else READY, f"{name}: {'finished' if what == DONE else f'failed, {describe(code)}'}"
        )

    def _retry(self, why: str) -> None:
        """Handles a failure to get machines: tries again later, or gives the run up."""
        if self._restarts.after(exit_codes.IO) == RESTART:
            self._wait(self._restarts.delay)
            self._move(DELETING, f"{why}; requesting again in {self._restarts.delay:.0f} s")
            return
        job = self._job(self.values["job"])
        job |= {"state": FAILED, "exit_code": exit_codes.IO, "reason": f"no machines: {why}"}
        self.values["job"] = ""
        self._move(DELETING, f"{why}; giving up after {self._restarts.in_vain} more requests")

    def _lost(self, error: GcloudError) -> None:
        if error.kind == REFUSED:
            raise ValueError(f"gcloud refuses: {error}") from error
        silent = time.monotonic() - self._heard
        self._say(f"{self.name}: {error} ({error.kind}; trying again)")
        self._wait(min(30.0, self._restarts.first_delay * 5))
        if silent > self._request.lost_seconds and self.stage in (PREPARING, READY, RUNNING):
            self._replace(f"no answer for {silent:.0f} s")
            self._heard = time.monotonic()

    def _ask(self, verb: str, *more: str) -> list[dict[str, Any]]:
        found = gcloud.answers(gcloud.run(self._request.remote(self.name, verb, *more)))
        if not found or (verb != "start" and len(found) < self.values.get("hosts", 1)):
            raise GcloudError(gcloud.LOST, f"{len(found)} of {self.values.get('hosts', 1)} hosts answered")
        return found

    def _fetch_log(self, name: str) -> None:
        command = self._request.remote(
            self.name, "log", f"--job={name}", f"--offset={self.values['offset']}", everywhere=False
        )
        for answer in gcloud.answers(gcloud.run(command))[:1]:
            text = base64.b64decode(answer["text"])
            if not text:
                return
            self._grown = time.monotonic()
            self._log(name, text)
            job = self._job(name)
            counts = Restarts(**job["restarts"])
            for step in _STEP.findall(text.decode(errors="replace")):
                counts.saw(int(step))
            job["restarts"] = dataclasses.asdict(counts)
            self.values["offset"] = answer["offset"]
            self._save()
            if len(text) == LOG_BYTES:  # there is more
                self._fetch_log(name)

    def _take(self) -> str:
        job = self._next_job()
        if job is None:
            return ""
        self.values |= {"job": job["name"], "offset": 0}
        self._save()
        return job["name"]

    def _wait(self, seconds: float) -> None:
        self._not_before = time.monotonic() + seconds

    def _move(self, stage: str, text: str = "") -> None:
        self.values["stage"] = stage
        self._save()
        if text:
            self._say(text)
