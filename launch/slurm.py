"""``--target=slurm``: a batch job for a run, an array job for a sweep; Slurm starts it again when it has preempted it.

The script of a job starts ``scaling train`` by srun in every task. When that ends, ``launch.slurm_end`` decides on the
node whether it starts again. Shortly before the time limit Slurm signals the script; the run saves, and the job goes
back into the queue under its own number.
"""

import math
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch import engine, jobs, slurm_end, slurm_state
from launch.engine import EngineError
from launch.restarts import DONE, FAIL
from launch.slurm_job import Cluster, cluster_of, script
from launch.slurm_state import LIVE, PENDING, Job, call
from scaling import exit_codes
from scaling.object_store import is_remote
from scaling.runs.paths import LOG
from scaling.sweep.plan import Run
from scaling.sweep.states import FAILED, FINISHED, RUNNING, STOPPED, WAITING

_ASK_SECONDS = 2.0  # one answer of squeue serves all runs
_LOOK_SECONDS = 1.0
_END_SECONDS = 120.0  # that Slurm may take to end a job (KillWait, epilog)


def refresh(values: dict[str, Any], folder: Path) -> None:
    """Updates the state of a launch from Slurm, which looks after the runs while no launcher does.

    Raises:
        ValueError: Slurm could not be asked.
    """
    handler = Slurm(cluster_of(values["cloud"]), values, folder)
    try:
        for job in values["jobs"].values():
            if job.get("resource") and job["state"] != FINISHED:
                engine.refresh(handler, job)
    except EngineError as error:
        raise ValueError(f"Slurm does not tell the states of {folder}: {error}") from None
    if all(job["state"] in engine.ENDS for job in values["jobs"].values()):
        values["state"] = FINISHED


class Slurm:
    """The runs of a launch as jobs of Slurm (``launch.engine.Engine``)."""

    together = True

    def __init__(self, cluster: Cluster, values: dict[str, Any], folder: Path, grace_seconds: float = 60.0):
        """Args: what jobs ask for, the state of the launch, its folder, and the time for saving at a stop."""
        self._cluster, self._values, self._folder, self._grace = cluster, values, folder, grace_seconds
        self._name = f"{jobs.label(values['name'])}-{values['id']}"
        known = {name: job.get("resource") for name, job in values["jobs"].items()}
        self._indices = {name: _index(resource) for name, resource in known.items() if resource}
        for name in known:
            self._indices.setdefault(name, max(self._indices.values(), default=-1) + 1)
        self._names = {index: name for name, index in self._indices.items()}
        self._asked = -math.inf
        self._queue: dict[int, Job] = {}
        self._read: dict[str, int] = {}  # bytes of each log that were shown; the log goes on when a job waits again

    def resource(self, run: Run) -> str:
        """Name of the job and index in its array; it stays the same if the sweep gets more runs."""
        return f"{self._name}_{self._indices[run.name]}"

    def typed(self, runs: Sequence[Run]) -> str:
        """The command and the script that start runs."""
        return f"{shlex.join(self._submission(runs))} <<'EOF'\n{self._script(runs)}EOF"

    def check(self, runs: Sequence[Run]) -> None:
        """Asks Slurm whether it would take the jobs.

        Raises:
            ValueError: it would not, or it does not answer.
        """
        command = self._submission(runs)
        try:
            call([command[0], "--test-only", *command[1:]], self._script(runs))
        except EngineError as error:
            raise ValueError(f"Slurm refuses the job: {error}") from None

    def start(self, runs: Sequence[Run]) -> None:
        ends = (WAITING, RUNNING, FINISHED)
        wanted = [run for run in runs if self.look(self.resource(run)).get("state") not in ends]
        if not wanted:
            return
        for run in wanted:  # another start asks for another try
            folder = self._plan_folder(run.name)
            (folder / slurm_end.END).unlink(missing_ok=True)
            log = folder / LOG
            self._read[self.resource(run)] = log.stat().st_size if log.exists() else 0
        call(self._submission(wanted), self._script(wanted))
        self._asked = -math.inf

    def look(self, name: str) -> dict[str, Any]:
        index = _index(name)
        job = self._jobs().get(index)
        end = slurm_end.read(self._plan_folder(self._names[index]))
        restarts = (job.restarts if job else 0) + end.get("in_place", 0)
        if job and job.state in LIVE:
            return {
                "state": WAITING if job.state in PENDING else RUNNING,
                "restarts": restarts,
                "reason": job.reason if job.state in PENDING else "",
            }
        if end.get("what") in (DONE, FAIL):
            failed = end["what"] == FAIL
            return {
                "state": FAILED if failed else FINISHED,
                "restarts": restarts,
                "reason": end["reason"] if failed else "",
            }
        job = job or slurm_state.accounted(self._name).get(index)
        if job is None:
            return {}
        if job.state == "COMPLETED":
            return {"state": FINISHED, "restarts": restarts, "reason": ""}
        # A run that saved at a signal and was not put back into the queue has been stopped, too.
        stopped = job.state == "CANCELLED" or end.get("code") in exit_codes.STOPPED
        return {
            "state": STOPPED if stopped else FAILED,
            "restarts": restarts,
            "reason": f"Slurm says {job.state} of job {job.id}",
        }

    def stop(self, name: str) -> None:
        """Stops all runs of the launch: those that wait first, so that none of them starts, then the others."""
        del name
        signalled: set[int] = set()
        until = time.monotonic() + self._grace
        while running := [job for job in self._live() if job.state not in PENDING]:
            for job in running:
                if job.number not in signalled and job.state != "COMPLETING":
                    self._signal(job)
                    signalled.add(job.number)
            if time.monotonic() > until:
                break
            time.sleep(_LOOK_SECONDS)
        until = time.monotonic() + _END_SECONDS
        while left := self._live():
            if time.monotonic() > until:
                raise EngineError(f"still in Slurm's queue: {', '.join(job.id for job in left)}")
            call(["scancel", *(job.id for job in left)])
            time.sleep(_LOOK_SECONDS)

    def logs(self, name: str, since: str) -> tuple[list[str], str]:
        log = self._plan_folder(self._names[_index(name)]) / LOG
        begin = self._read.get(name, int(since or 0))
        if not log.exists():
            return [], since
        with log.open("rb") as file:
            file.seek(begin)
            text = file.read()
        text = text[: text.rfind(b"\n") + 1]  # whole lines
        self._read[name] = begin + len(text)
        return text.decode(errors="replace").splitlines(), str(begin + len(text))

    def _live(self) -> list[Job]:
        """The jobs that are not over, without those that wait, which are cancelled here."""
        live = [job for job in slurm_state.queued(self._name).values() if job.state in LIVE]
        if waiting := [job.id for job in live if job.state in PENDING]:
            call(["scancel", *waiting])
        return live

    @staticmethod
    def _signal(job: Job) -> None:
        """Lets a job save and end, without another start."""
        try:
            call(["scontrol", "update", f"JobId={job.number}", "Requeue=0"])
            call(["scancel", "--signal=TERM", "--batch", str(job.number)])
        except EngineError:  # it has just ended
            return

    def _jobs(self) -> dict[int, Job]:
        if time.monotonic() - self._asked > _ASK_SECONDS:
            self._queue, self._asked = slurm_state.queued(self._name), time.monotonic()
        return self._queue

    def _plan_folder(self, name: str) -> Path:
        return Path(jobs.plan_folder(self._folder, name, self._values["jobs"][name]["workdir"])).absolute()

    def _submission(self, runs: Sequence[Run]) -> list[str]:
        array = len(self._indices) > 1
        indices = [self._indices[run.name] for run in runs] if array else None
        log = str(self._folder.absolute()).replace("%", "%%") + f"/slurm{'-%a' * array}.log"
        return self._cluster.submission(self._name, indices, log)

    def _script(self, runs: Sequence[Run]) -> str:
        plans = {self._indices[run.name]: self._plan_folder(run.name) for run in runs}
        folders = [run.config.workdir for run in runs if not is_remote(run.config.workdir)]
        mounts = [self._folder.absolute(), *plans.values(), *(Path(folder).absolute() for folder in folders)]
        return script(self._cluster, plans, [str(folder) for folder in mounts])


def _index(name: str) -> int:
    return int(name.rpartition("_")[2])
