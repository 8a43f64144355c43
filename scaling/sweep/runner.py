"""Runs a sweep: a ``scaling train`` process for each run, several at a time, resumable at any time."""

import dataclasses
import hashlib
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from scaling import cache, durable, exit_codes
from scaling.config import schema as cfg
from scaling.object_store import is_remote
from scaling.runs.lock import is_locked
from scaling.runs.paths import LOG, PLAN, length_and_time
from scaling.sweep.machine import Machine
from scaling.sweep.plan import Run
from scaling.sweep.progress import Clock, Progress, progress
from scaling.sweep.states import FAILED, FINISHED, RUNNING, STOPPED, WAITING
from scaling.train.signals import stops

_POLL_SECONDS = 0.5
_REMOTE_SECONDS = 5.0
_ERROR = "scaling train: error: "

ELSEWHERE = "elsewhere"  # another process is training it


@dataclasses.dataclass
class Job:
    """A run, its process and its state."""

    run: Run
    state: str = WAITING
    progress: Progress = dataclasses.field(default_factory=Progress)
    units: list[int] = dataclasses.field(default_factory=list)
    process: "subprocess.Popen[bytes] | None" = None
    exit_code: int = 0
    reason: str = ""  # of a failure
    logged: int = 0  # bytes of the log that earlier attempts wrote
    looked: float = -math.inf  # when its files were last read

    @property
    def folder(self) -> epath.Path:
        """The run directory."""
        return epath.Path(self.run.config.workdir)

    @property
    def log(self) -> epath.Path:
        """What the run's process printed. That of a run in an object store lies in the cache until the process ends."""
        if not is_remote(self.folder):
            return self.folder / LOG
        name = hashlib.sha256(str(self.folder).encode()).hexdigest()[:32]
        return epath.Path(cache.root()) / "logs" / name / LOG

    def look(self, at_once: bool) -> None:
        """Reads the progress; from an object store only every few seconds, unless it must be now."""
        if at_once or not is_remote(self.folder) or time.monotonic() - self.looked > _REMOTE_SECONDS:
            self.progress, self.looked = progress(self.run), time.monotonic()

    def why(self) -> str:
        """The reason of a failure: a signal, or the error in the log of this attempt, or its last line."""
        if self.exit_code < 0:
            name = signal.Signals(-self.exit_code).name
            return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        lines = self.log.read_bytes()[self.logged :].decode(errors="replace").strip().splitlines()
        errors = [line for line in lines if line.startswith(_ERROR)]
        return [f"exit code {self.exit_code}", *lines[-1:], *errors[-1:]][-1].removeprefix(_ERROR)


class Runner:
    """The runs of a sweep on this machine.

    Attributes:
        jobs: cheapest first.
        slots: runs at a time.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        machine: Machine,
        slots: int,
        utilisation: float,
        command: Sequence[str] = (sys.executable, "-m", "scaling", "train"),
        busy: Callable[[epath.Path], bool] = is_locked,
    ):
        """A sweep that has not begun.

        Args:
            runs: a plan.
            machine: where it runs.
            slots: runs at a time.
            utilisation: the fraction of the peak that is assumed before a measurement.
            command: the command that trains a run; ``--config=PLAN`` is appended.
            busy: whether another process uses a run directory, such as one of a killed sweep; it is waited for.
        """
        self.jobs = [Job(run) for run in runs]
        self.slots = slots
        self._machine = machine
        self._command, self._busy = list(command), busy
        self._free = list(machine.units)
        self._stop = 0
        self.clock = Clock(machine.unit_flops * len(machine.units) / slots, utilisation)
        for job in self.jobs:
            job.progress = progress(job.run)
            self.clock.learn(job.run, job.progress)
            if job.progress.finished:
                job.state = FINISHED
            elif busy(job.folder):
                job.state = ELSEWHERE

    def of(self, *states: str) -> list[Job]:
        """The jobs in these states."""
        return [job for job in self.jobs if job.state in states]

    def run(self, watch: Callable[["Runner"], Any]) -> int:
        """Runs what is not finished; a failed run does not stop the others.

        Args:
            watch: called about twice a second.

        Returns:
            0 if all finished; the exit code of a signal if one came (the runs have saved, and the same command resumes
            them); or that of the first failed run.
        """
        before = {number: signal.signal(number, self._note) for number in stops()}
        try:
            while (self.of(WAITING, ELSEWHERE) and not self._stop) or self.of(RUNNING):
                if not self._stop:
                    self._start_more()
                watch(self)
                time.sleep(_POLL_SECONDS)
                for job in self.of(RUNNING):
                    self._look(job)
                for job in self.of(ELSEWHERE):
                    self._look_elsewhere(job)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for job in self.of(RUNNING):  # only after an exception
                job.process.terminate()  # type: ignore[union-attr]
        watch(self)
        if self._stop:
            return exit_codes.OF_SIGNAL[signal.Signals(self._stop)]
        failed = self.of(FAILED, STOPPED)
        return max(failed[0].exit_code, exit_codes.BUG) if failed else exit_codes.OK

    def seconds_left(self) -> float:
        """Estimated time until the last run ends."""
        running = [self.clock.seconds(job.run, job.progress.tokens) for job in self.of(RUNNING, ELSEWHERE)]
        waiting = [self.clock.seconds(job.run, job.progress.tokens) for job in self.of(WAITING) if not self._stop]
        return self.clock.makespan(running, waiting, self.slots)

    def _note(self, number: int, frame: object) -> None:
        """Passes a signal on to the runs, which save and end, or end at once at a second signal; no new runs start."""
        for job in self.of(RUNNING):
            if job.process is not None:
                job.process.send_signal(number)
        self._stop = number

    def _start_more(self) -> None:
        if self.of(ELSEWHERE):  # they use cores or devices, which are not known here
            return
        share = len(self._machine.units) // self.slots
        while (waiting := self.of(WAITING)) and len(self._free) >= share and len(self.of(RUNNING)) < self.slots:
            # The last runs share the cores that would otherwise be idle.
            self._start(waiting[0], max(share, len(self._free) // len(waiting)))
            if self._stop:
                return

    def _start(self, job: Job, take: int) -> None:
        plan = write_plan(job.run, job.folder)
        job.log.parent.mkdir(parents=True, exist_ok=True)
        job.logged = length_and_time(job.log)[0] if job.log.exists() else 0
        job.units, self._free = self._free[:take], self._free[take:]
        command = [*self._command, f"--config={plan}"]
        with job.log.open("ab") as log, self._machine.restrict(job.units) as environment:
            # In a session of its own, so that ctrl-C reaches the runs only once, through this process.
            job.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        job.state = RUNNING
        if self._stop:  # the signal came while the process was being made
            job.process.send_signal(self._stop)

    def _look(self, job: Job) -> None:
        assert job.process is not None
        code = job.process.poll()
        job.look(at_once=code is not None)
        self.clock.learn(job.run, job.progress)
        if code is None:
            return
        if is_remote(job.folder):
            (job.folder / LOG).write_bytes(job.log.read_bytes())
        self._free = sorted(self._free + job.units)
        job.exit_code = code
        if job.progress.finished and code == 0:
            job.state = FINISHED
        elif self._stop or code in exit_codes.STOPPED:
            job.state = STOPPED
        else:
            job.state, job.reason = FAILED, job.why()

    def _look_elsewhere(self, job: Job) -> None:
        job.look(at_once=False)
        if not self._busy(job.folder):
            job.look(at_once=True)  # the last validation may have come since
            job.state = FINISHED if job.progress.finished else WAITING


def write_plan(run: Run, folder: epath.Path) -> epath.Path:
    """Writes the resolved config of a run as ``plan.json`` in a folder, as a whole; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = folder / PLAN
    durable.replace_text(plan, cfg.to_json(run.config))
    return plan
