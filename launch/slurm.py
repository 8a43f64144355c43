"""``--target=slurm``: a batch job for a run, an array job for a sweep; Slurm starts it again when it has preempted it.

The script of a job starts ``scaling train`` by srun in every task. When that ends, ``launch.slurm_end`` decides on the
node whether it starts again. Shortly before the time limit Slurm signals the script; the run saves, and the job goes
back into the queue under its own number.
"""

import dataclasses
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch import engine, jobs, slurm_end, slurm_state
from launch.engine import EngineError
from launch.restarts import DONE, FAIL
from launch.slurm_state import LIVE, PENDING, Job, call
from scaling import exit_codes
from scaling.config.refusal import shown
from scaling.runs.paths import LOG, PLAN
from scaling.sweep.plan import Run
from scaling.sweep.states import FAILED, FINISHED, RUNNING, STOPPED, WAITING

TASKS = ("node", "gpu")
CONTAINERS = ("pyxis", "apptainer")
_ASK_SECONDS = 2.0  # one answer of squeue serves all runs
_LOOK_SECONDS = 1.0
_END_SECONDS = 120.0  # that Slurm may take to end a job (KillWait, epilog)
_FIRST_PORT, _PORTS = 61440, 4096  # a port for each job of a node, as JAX chooses it

# Tasks get SIGUSR1, which has no effect the second time: Slurm sends SIGTERM to them when it ends a job, and a second
# SIGTERM ends a training that is still saving.
_SCRIPT = """\
#!/bin/bash
# Made by scaling launch: trains a run until it is finished, or until this job has to go back into the queue.
plans=({plans})
plan=${{plans[${{SLURM_ARRAY_TASK_ID:-0}}]}}
exec >>"${{plan%/*}}/{log}" 2>&1
{environment}
stopping= child=
trap 'stopping=yes; [ -z "$child" ] || kill -USR1 "$child"' TERM

finish() {{  # sets code to that of the last child; a signal ends wait, but not the child
  child=$!
  [ -z "$stopping" ] || kill -USR1 "$child"
  while wait "$child"; code=$?; kill -0 "$child" 2>/dev/null; do :; done
  wait "$child"; last=$?
  [ "$last" = 127 ] || code=$last
  child=
}}

while [ -z "$stopping" ]; do
  echo "{marker} $SLURM_JOB_ID, start $((${{SLURM_RESTART_COUNT:-0}} + 1)), on $SLURM_JOB_NODELIST"
  {train} --config="$plan" &
  finish
  ended=$code
  answer=$({decide} --config="$plan" --code="$ended")
  [ "${{answer%% *}}" = again ] || exit "$ended"
  case $ended in {stopped}) stopping=yes;; esac
  [ -n "$stopping" ] || {{ sleep "${{answer#again }}" & finish; }}
done
# A job that someone cancels stays out of the queue.
[ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ] || exit "$ended"
scontrol requeue "$SLURM_JOB_ID" || exit "$ended"
sleep 60  # Slurm ends this script
"""
# The address by which Slurm reaches the first node; its name need not be known to the others.
_JOIN = f"""\
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(scontrol --oneliner show node "$first" | grep -o 'NodeAddr=[^ ]*')
address=${{address#NodeAddr=}}
export JAX_COORDINATOR_ADDRESS="${{address:-$first}}:$(({_FIRST_PORT} + SLURM_JOB_ID % {_PORTS}))"
"""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """What the jobs of a launch ask for; empty texts are left to Slurm.

    Attributes:
        partition: partition or partitions, ``a,b``.
        account: account that is charged.
        qos: quality of service.
        time: limit of a job, as Slurm writes it; a run continues in the next job.
        nodes: number of nodes of a run.
        gpus: GPUs of a node, ``8`` or ``h100:8``.
        tasks: a process for each ``node`` or for each ``gpu``.
        cpus: CPUs of a process; 0 = as Slurm is configured.
        constraint: features that the nodes must have.
        image: container image in which this package is installed; empty = no container.
        container: how it is started, one of ``CONTAINERS``.
        mounts: folders that the container gets besides those of the launch.
        sbatch: further arguments of sbatch.
        parallel: tasks of an array at a time; 0 = as many as fit.
        signal_seconds: time before the limit at which a run is told to save.
        max_restarts: limit of starts in a row without progress.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    time: str = ""
    nodes: int = 1
    gpus: str = ""
    tasks: str = TASKS[0]
    cpus: int = 0
    constraint: str = ""
    image: str = ""
    container: str = CONTAINERS[0]
    mounts: Sequence[str] = ()
    sbatch: Sequence[str] = ()
    parallel: int = 0
    signal_seconds: int = 120
    max_restarts: int = 5

    def __post_init__(self) -> None:
        if self.gpus and not (self.gpus.rpartition(":")[2].isdecimal() and self.gpus_per_node):
            raise ValueError(f"--gpus={self.gpus} must be the number of GPUs of a node, such as 8 or h100:8")
        if self.tasks == "gpu" and not self.gpus:
            raise ValueError("--tasks=gpu needs --gpus, the number of GPUs of a node")
        if self.cpus < 0 or self.signal_seconds < 1:
            raise ValueError("--cpus must not be negative, --signal_seconds at least 1")
        for argument in self.sbatch:
            if not argument.startswith("-"):
                raise ValueError(
                    f"--sbatch={shown(argument)} must be an option of sbatch, such as --sbatch=--exclusive"
                )
        if self.mounts and not self.image:
            raise ValueError("--mounts belongs to --image")
        limit = seconds_of(self.time) if self.time else 0
        if limit and limit <= self.signal_seconds:
            raise ValueError(
                f"--time={self.time} must be longer than --signal_seconds={self.signal_seconds}, which a run has "
                "for saving"
            )

    @property
    def gpus_per_node(self) -> int:
        return int(self.gpus.rpartition(":")[2]) if self.gpus else 0

    @property
    def tasks_per_node(self) -> int:
        return self.gpus_per_node if self.tasks == "gpu" else 1

    @property
    def processes(self) -> int:
        """Number of processes of a run."""
        return self.nodes * self.tasks_per_node

    def devices(self, cpu_devices: int) -> int:
        """JAX devices of a run, if a process without GPUs has so many (0 = 1)."""
        return self.nodes * self.gpus_per_node or self.processes * max(1, cpu_devices)

    @property
    def words(self) -> str:
        """What a run gets."""
        gpus = f" with {self.gpus} GPUs" if self.gpus else ""
        return f"{self.nodes} nodes{gpus}, {self.processes} processes"

    def submission(self, name: str, indices: Sequence[int] | None, log: str) -> list[str]:
        """The arguments of sbatch.

        Args:
            name: of the job.
            indices: tasks of the array; None = no array.
            log: file for what the job prints before it has a log of its own.
        """
        given = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "time": self.time,
            "nodes": self.nodes,
            "gpus-per-node": self.gpus,
            "ntasks-per-node": self.tasks_per_node,
            "cpus-per-task": self.cpus,
            "constraint": self.constraint,
        }
        if indices is not None:
            given["array"] = ",".join(map(str, indices)) + (f"%{self.parallel}" if self.parallel else "")
        options = [f"--{option}={value}" for option, value in given.items() if value]
        usual = ["--parsable", f"--job-name={name}", f"--signal=B:TERM@{self.signal_seconds}", "--requeue"]
        return ["sbatch", *self.sbatch, *usual, *options, "--open-mode=append", f"--output={log}"]

    def step(self, folders: Sequence[str], more: Sequence[str], arguments: Sequence[str]) -> list[str]:
        """The arguments of srun that start a Python program, in the container if there is one.

        Args:
            folders: that the container must have.
            more: further arguments of srun.
            arguments: of Python.
        """
        step = ["srun", *([f"--cpus-per-task={self.cpus}"] if self.cpus else []), *more]
        where = str(Path.cwd())
        mounts = list(dict.fromkeys([where, *folders, *self.mounts]))
        if self.image and self.container == "pyxis":
            inside = ",".join(mount if ":" in mount else f"{mount}:{mount}" for mount in mounts)
            step += [f"--container-image={self.image}", f"--container-mounts={inside}", f"--container-workdir={where}"]
        elif self.image:
            gpus = ["--nv"] if self.gpus else []
            step += ["apptainer", "exec", *gpus, f"--bind={','.join(mounts)}", f"--pwd={where}", self.image]
        return [*step, "python3" if self.image else jobs.command("")[0], *arguments]


def seconds_of(limit: str) -> int:
    """A time limit of Slurm in seconds; 0 = none.

    Raises:
        ValueError: Slurm does not have this form.
    """
    days, dash, rest = limit.rpartition("-")
    parts = rest.split(":")
    if limit.upper() in ("UNLIMITED", "INFINITE"):
        return 0
    if not all(part.isdecimal() for part in [*parts, *([days] if dash else [])]) or len(parts) > 3:
        raise ValueError(
            f"--time={limit} must be MINUTES, MINUTES:SECONDS, HOURS:MINUTES:SECONDS, DAYS-HOURS, DAYS-HOURS:MINUTES "
            "or DAYS-HOURS:MINUTES:SECONDS"
        )
    numbers = [int(part) for part in parts]
    if dash:  # hours first
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    else:  # minutes, unless there are three
        hours, minutes, seconds = numbers if len(numbers) == 3 else [0, *numbers, 0][:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def cluster_of(cloud: Mapping[str, Any]) -> Cluster:
    """The cluster of the state of a launch."""
    return Cluster(**cloud)


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
            (self._plan_folder(run.name) / slurm_end.END).unlink(missing_ok=True)
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
        """Stops all runs of the launch: first those that wait, so that none of them starts, then the others by a signal."""
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
        begin = int(since or 0)
        if not log.exists():
            return [], since
        with log.open("rb") as file:
            file.seek(begin)
            text = file.read()
        text = text[: text.rfind(b"\n") + 1]  # whole lines
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
        cluster = self._cluster
        folders = {self._indices[run.name]: str(self._plan_folder(run.name)) for run in runs}
        kept = [*folders.values(), *(run.config.workdir for run in runs if "://" not in run.config.workdir)]
        mounts = [str(self._folder.absolute()), *(str(Path(folder).absolute()) for folder in kept)]
        environment = _JOIN if cluster.processes > 1 else ""
        if cluster.gpus and cluster.tasks == "node":
            # Else JAX, which sees a process of Slurm, takes one GPU for it.
            environment += f"export JAX_LOCAL_DEVICE_IDS={','.join(map(str, range(cluster.gpus_per_node)))}\n"
        # A process that misses another ends by itself; what one minute does not end, srun ends.
        train = cluster.step(mounts, ["--kill-on-bad-exit=0", "--wait=60"], ["-m", "scaling", "train"])
        decide = ["-m", "launch.slurm_end", f"--max_restarts={cluster.max_restarts}"]
        return _SCRIPT.format(
            plans=" ".join(f"[{index}]={shlex.quote(f'{folder}/{PLAN}')}" for index, folder in folders.items()),
            log=LOG,
            marker=slurm_end.MARKER,
            environment=environment,
            train=shlex.join(train),
            decide=shlex.join(cluster.step(mounts, ["--nodes=1", "--ntasks=1", "--overlap"], decide)),
            stopped="|".join(str(code) for code in exit_codes.OF_SIGNAL.values()),
        )


def _index(name: str) -> int:
    return int(name.rpartition("_")[2])
