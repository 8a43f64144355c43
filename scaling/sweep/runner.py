"""Runs a sweep: one ``scaling train`` process a run, several side by side, resumable at any time."""

import dataclasses
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from scaling import config as cfg
from scaling import exit_codes
from scaling.sweep.machine import Machine
from scaling.sweep.plan import Run
from scaling.sweep.progress import Clock, Progress, progress
from scaling.train.lock import is_locked

_POLL_SECONDS = 0.5
_STOPPED = (exit_codes.SIGINT, exit_codes.SIGTERM, -signal.SIGINT, -signal.SIGTERM)

WAITING, RUNNING, FINISHED, FAILED, STOPPED = "waiting", "running", "finished", "failed", "stopped"
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

    @property
    def log(self) -> epath.Path:
        """What the run's process printed."""
        return epath.Path(self.run.config.workdir) / "train.log"

    @property
    def reason(self) -> str:
        """The last line of the log of a failed run."""
        lines = self.log.read_text().strip().splitlines() if self.log.exists() else []
        return lines[-1].removeprefix("scaling train: error: ") if lines else f"exit code {self.exit_code}"


class Runner:
    """The runs of a sweep on this machine.

    Attributes:
        jobs: cheapest first.
        slots: runs at a time.
    """

    def __init__(self, runs: Sequence[Run], machine: Machine, slots: int):
        self.jobs = [Job(run) for run in runs]
        self.slots = slots
        self._machine = machine
        self._free = list(machine.units)
        self._stop = 0
        self.clock = Clock(machine.unit_flops * len(machine.units) / slots)
        for job in self.jobs:
            job.progress = progress(job.run)
            self.clock.learn(job.run, job.progress)
            if job.progress.finished:
                job.state = FINISHED

    def of(self, *states: str) -> list[Job]:
        """The jobs in these states."""
        return [job for job in self.jobs if job.state in states]

    def run(self, watch: Callable[["Runner"], Any]) -> int:
        """Runs what is not finished; a failed run does not stop the others.

        Args:
            watch: called about twice a second.

        Returns:
            0 if all finished; the exit code of SIGINT or SIGTERM if one came (the runs have saved, the same command
            goes on); else that of the first failed run.
        """
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._note) for number in signals}
        try:
            while (self.of(WAITING, ELSEWHERE) and not self._stop) or self.of(RUNNING):
                if not self._stop:
                    self._start_more()
                watch(self)
                time.sleep(_POLL_SECONDS)
                for job in self.of(RUNNING):
                    self._look(job)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for job in self.of(RUNNING):  # only if something above raised
                job.process.terminate()  # type: ignore[union-attr]
        watch(self)
        if self._stop:
            return exit_codes.SIGINT if self._stop == signal.SIGINT else exit_codes.SIGTERM
        failed = self.of(FAILED, STOPPED)
        return max(failed[0].exit_code, exit_codes.BUG) if failed else exit_codes.OK

    def seconds_left(self) -> float:
        """Estimated time until the last run ends."""
        running = [self.clock.seconds(job.run, job.progress.tokens) for job in self.of(RUNNING, ELSEWHERE)]
        waiting = [self.clock.seconds(job.run, job.progress.tokens) for job in self.of(WAITING)]
        return self.clock.makespan(running, waiting, self.slots)

    def _note(self, number: int, frame: object) -> None:
        """Passes a signal on to the runs, which save and end (at once, if it is the second); no new ones start."""
        for job in self.of(RUNNING):
            if job.process is not None:
                job.process.send_signal(number)
        self._stop = number

    def _start_more(self) -> None:
        for job in self.of(ELSEWHERE):
            if not is_locked(epath.Path(job.run.config.workdir)):
                job.progress = progress(job.run)
                job.state = FINISHED if job.progress.finished else WAITING
        share = len(self._machine.units) // self.slots
        while (waiting := self.of(WAITING)) and len(self._free) >= share and len(self.of(RUNNING)) < self.slots:
            job = waiting[0]
            if is_locked(epath.Path(job.run.config.workdir)):
                job.state = ELSEWHERE
                continue
            # The last runs share what would otherwise lie idle.
            take = max(share, len(self._free) // len(waiting))
            self._start(job, take)

    def _start(self, job: Job, take: int) -> None:
        folder = epath.Path(job.run.config.workdir)
        folder.mkdir(parents=True, exist_ok=True)
        plan = folder / "plan.json"
        plan.write_text(cfg.to_json(job.run.config))
        job.units, self._free = self._free[:take], self._free[take:]
        command = [sys.executable, "-m", "scaling", "train", f"--config={plan}"]
        with job.log.open("ab") as log, self._machine.restrict(job.units) as environment:
            # A session of its own: ctrl-C reaches the runs once, through us.
            job.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        job.state = RUNNING

    def _look(self, job: Job) -> None:
        assert job.process is not None
        code = job.process.poll()
        job.progress = progress(job.run)
        self.clock.learn(job.run, job.progress)
        if code is None:
            return
        self._free = sorted(self._free + job.units)
        job.exit_code = code
        if job.progress.finished and code == 0:
            job.state = FINISHED
        else:
            job.state = STOPPED if code in _STOPPED else FAILED
