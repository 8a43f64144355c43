"""What a job of Slurm asks for, as arguments of sbatch and srun, and its script."""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch import jobs, slurm_end
from scaling.config.refusal import shown
from scaling.runs.paths import LOG, PLAN

TASKS = ("node", "gpu")
CONTAINERS = ("pyxis", "apptainer")
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
  while wait "$child"; code=$?; [ "$code" -gt 128 ] && kill -0 "$child" 2>/dev/null; do :; done
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
  case $answer in
    "{again} "*) [ -n "$stopping" ] || {{ sleep "${{answer#* }}" & finish; }};;
    {requeue}) stopping=yes;;
    *) exit "$ended";;
  esac
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
        nodes, processes = "s" * (self.nodes > 1), "es" * (self.processes > 1)
        return f"{self.nodes} node{nodes}{gpus}, {self.processes} process{processes}"

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


def script(cluster: Cluster, plans: Mapping[int, Path], mounts: Sequence[str]) -> str:
    """The script of a job.

    Args:
        cluster: what the job asks for.
        plans: folder of the ``plan.json`` of each run, by the index in the array.
        mounts: folders that a container must have.
    """
    environment = _JOIN if cluster.processes > 1 else ""
    if cluster.gpus and cluster.tasks == "node":
        # Else JAX, which sees a process of Slurm, takes one GPU for it.
        environment += f"export JAX_LOCAL_DEVICE_IDS={','.join(map(str, range(cluster.gpus_per_node)))}\n"
    # A process that misses another ends by itself; those that do not, srun ends after a minute.
    train = cluster.step(mounts, ["--kill-on-bad-exit=0", "--wait=60"], ["-m", "scaling", "train"])
    decide = ["-m", "launch.slurm_end", f"--max_restarts={cluster.max_restarts}"]
    return _SCRIPT.format(
        plans=" ".join(f"[{index}]={shlex.quote(f'{folder}/{PLAN}')}" for index, folder in plans.items()),
        log=LOG,
        marker=slurm_end.MARKER,
        environment=environment,
        train=shlex.join(train),
        decide=shlex.join(cluster.step(mounts, ["--nodes=1", "--ntasks=1", "--overlap"], decide)),
        again=slurm_end.AGAIN,
        requeue=slurm_end.REQUEUE,
    )
