"""A Slurm of two nodes on this machine, with a munged of its own, for the time of a test.

The nodes are called a1 and a2, which no name service knows. Jobs of the partition ``high`` preempt those of ``low``,
which go back into the queue.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
# Slurm keeps a job that was put back for two minutes from starting, and looks at the whole queue once a minute.
# cred_expire and sched_interval shorten both.
_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptMode=REQUEUE
PreemptType=preempt/partition_prio
KillWait=5
NodeName=a1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=100
NodeName=a2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=100
PartitionName=low Nodes=a1,a2 Default=YES State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=high Nodes=a1,a2 State=UP PriorityTier=10 PreemptMode=OFF
"""


def lacking() -> str:
    """Why no Slurm can be started here; empty if one can."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [name for name in _PROGRAMS if not shutil.which(name, path=path)]
    if missing:
        return f"needs {', '.join(missing)} (make engines)"
    return "" if os.geteuid() == 0 else "needs root, which starts the daemons of a Slurm"


def _ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]


@contextlib.contextmanager
def started() -> Iterator[dict[str, str]]:
    """Starts the daemons, and ends them; gives the variables of the environment with which commands find them."""
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # a short path: the name of a socket has 108 bytes at most
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        (folder / "state").mkdir()
        (folder / "key").write_bytes(os.urandom(128))
        (folder / "key").chmod(0o400)
        conf = folder / "slurm.conf"
        conf.write_text(_CONF.format(host=socket.gethostname().partition(".")[0], folder=folder, ports=_ports(3)))
        found = {"SLURM_CONF": str(conf), "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        munge = [f"--{name}={folder}/munge.{name.partition('-')[0]}" for name in ("socket", "pid-file", "log-file")]
        munge += [f"--key-file={folder}/key", f"--seed-file={folder}/seed", "--foreground", "--force"]
        commands = [["munged", *munge], ["slurmctld", "-D"], ["slurmd", "-D", "-N", "a1"], ["slurmd", "-D", "-N", "a2"]]
        for number, command in enumerate(commands):
            log = stack.enter_context((folder / f"log-{number}").open("w"))
            process = subprocess.Popen(command, env=os.environ | found, stdout=log, stderr=log, start_new_session=True)
            stack.callback(process.wait, 20)
            stack.callback(process.terminate)
            if command[0] == "munged":
                _wait(lambda: (folder / "munge.socket").exists(), folder)
        _wait(lambda: command_of(found, "sinfo", "--noheader", "--format=%t", "--Node").split() == ["idle"] * 4, folder)
        stack.callback(_end_jobs, found)
        yield found


def command_of(variables: dict[str, str], *arguments: str) -> str:
    """What a command of Slurm prints."""
    found = subprocess.run(arguments, env=os.environ | variables, capture_output=True, text=True, timeout=60)
    return found.stdout


def _end_jobs(variables: dict[str, str]) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until and (left := command_of(variables, "squeue", "--noheader", "--format=%A").split()):
        command_of(variables, "scancel", *left)
        time.sleep(0.5)


def _wait(ready: Callable[[], bool], folder: Path) -> None:
    until = time.monotonic() + 30
    while not ready():
        if time.monotonic() > until:
            logs = "\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("log-*")))
            raise RuntimeError(f"no Slurm came up\n{logs}")
        time.sleep(0.1)
