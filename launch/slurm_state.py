"""Calls Slurm's commands, and reads what squeue and sacct say of the jobs of a launch."""

import dataclasses
import subprocess
from collections.abc import Sequence

from launch.engine import EngineError

PENDING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT")
LIVE = (*PENDING, "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")
_FIELDS = "ArrayJobID:20,ArrayTaskID:20,JobID:20,State:30,RestartCnt:20,Reason:200"
_SINCE = "now-90days"  # sacct looks back only to midnight by itself
_LONGEST = 500  # characters of a message that is passed on


@dataclasses.dataclass(frozen=True)
class Job:
    """A job or a task of an array, as Slurm knows it.

    Attributes:
        id: as scancel takes it, ``12`` or ``12_3``.
        number: the job's own, ``SLURM_JOB_ID``; tasks of an array that wait have that of the array.
        state: Slurm's word, such as ``RUNNING``.
        restarts: how often Slurm has put it back into the queue.
        reason: Slurm's word for why it waits; may be empty.
    """

    id: str
    number: int
    state: str
    restarts: int = 0
    reason: str = ""


def call(arguments: Sequence[str], given: str = "") -> str:
    """Runs a command of Slurm and returns what it prints.

    Raises:
        EngineError: it failed; the text is what it says.
        ValueError: Slurm's commands are not installed.
    """
    try:
        found = subprocess.run(
            arguments, input=given, capture_output=True, text=True, timeout=120, start_new_session=True
        )
    except FileNotFoundError:
        raise ValueError(f"{arguments[0]} is not installed; launch from a login node of a Slurm cluster") from None
    except subprocess.TimeoutExpired:
        raise EngineError(f"{arguments[0]} gave no answer in 120 s") from None
    if found.returncode:
        raise EngineError(f"{arguments[0]}: {_said(found.stderr) or f'exit code {found.returncode}'}")
    return found.stdout


def _said(text: str) -> str:
    """The lines of a message as one, without the names of commands before each."""
    lines = (line.rpartition("error: ")[2].strip() for line in text.splitlines())
    return "; ".join(dict.fromkeys(line for line in lines if line))[:_LONGEST]


def queued(name: str) -> dict[int, Job]:
    """The jobs with a name that the controller knows, by the index in their array; 0 without an array.

    Where several have the same index, the newest is returned. Ended ones stay for a while (MinJobAge).

    Raises:
        EngineError: squeue failed.
    """
    # --array gives each task a line of its own, also those that wait.
    command = ["squeue", "--noheader", "--array", "--states=all", f"--name={name}", f"--Format={_FIELDS}"]
    found: dict[int, Job] = {}
    for line in call(command).splitlines():
        array, task, number, state, restarts, *reason = line.split()
        index, several = (int(task), True) if task.isdecimal() else (0, False)
        why = " ".join(reason) if reason != ["None"] else ""
        job = Job(f"{array}_{index}" if several else number, int(number), state, int(restarts), why)
        if index not in found or found[index].number <= job.number:
            found[index] = job
    return found


def accounted(name: str) -> dict[int, Job]:
    """The same from the accounts, which keep jobs that the controller has forgotten; empty without accounting."""
    command = ["sacct", "--noheader", "--parsable2", "--allocations", f"--name={name}", f"--starttime={_SINCE}"]
    try:
        text = call([*command, "--format=JobID,JobIDRaw,State"])
    except (EngineError, ValueError):
        return {}
    found: dict[int, Job] = {}
    for line in text.splitlines():
        one, number, state = line.split("|")
        task = one.partition("_")[2]
        if number.isdecimal() and (not task or task.isdecimal()):  # not the waiting rest of an array, 12_[3-7]
            found[int(task or 0)] = Job(one, int(number), state.split()[0])  # "CANCELLED by 0"
    return found
