"""Joining the processes of a multi-host run: TPU pods, Slurm, Kubernetes, MPI, or a plain address."""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from scaling import exit_codes, platforms
from scaling.config import schema as cfg

_THREADS_A_DEVICE = 4
_TOLD_SECONDS = 10
_LOOK_SECONDS = 1.0
_JAX_LATER_SECONDS = 60  # than ours JAX gives up, with less to say
_PROBE_SECONDS = 3
# What Gloo, gRPC and JAX's coordination service say of a process that does not answer any more.
_LOST = (
    "Gloo",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "Connection closed by peer",
    "Connection reset",
    "Socket closed",
    "CoordinationService",
    "heartbeat",
)


def _several(environment: Mapping[str, str]) -> bool:
    """Whether a launcher that JAX knows started several processes that should find each other."""

    def count(name: str) -> int:
        value = environment.get(name, "1")
        return int(value) if value.isdecimal() else 1

    # A shell inside an allocation has SLURM_NTASKS too, and where srun started the shell, a rank: it is a step of one.
    slurm = min(count("SLURM_NTASKS"), count("SLURM_STEP_NUM_TASKS")) > 1 and "SLURM_PROCID" in environment
    gke = "," in environment.get("TPU_WORKER_HOSTNAMES", "") or count("MEGASCALE_NUM_SLICES") > 1
    return slurm or gke or count("OMPI_COMM_WORLD_SIZE") > 1


def _on_tpu_vm(environment: Mapping[str, str]) -> bool:
    """Whether this is a Cloud TPU VM, whose metadata tell JAX the other hosts (also if there are none)."""
    return platforms.has_tpu() and platforms.has_libtpu() and environment.get("JAX_PLATFORMS") != "cpu"


def virtual_cpu_devices(count: int) -> None:
    """Makes this machine's cores so many JAX devices; call before any array.

    A device that waits in a collective holds a thread of a pool, and XLA gives the pool one a device (or a core, if
    there are more). Where a device is to enter two collectives of different groups, that can be too few: devices that
    begin with one wait for devices that begin with the other, and after 40 seconds XLA ends the process.
    """
    jax.config.update("jax_num_cpu_devices", count)
    if count > 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = max(cores, _THREADS_A_DEVICE * count)
        os.environ.setdefault("PJRT_NPROC", str(threads))  # read when JAX makes its devices


def initialize(config: cfg.Distributed, cpu_devices: int = 0) -> None:
    """Sets up the devices of this process and joins it to the others; call once, before any array.

    * ``coordinator_address`` given (with ``num_processes`` and ``process_id``): used as it is.
    * ``JAX_COORDINATOR_ADDRESS`` set (what GKE JobSet, most Kubernetes templates and ``scaling launch`` on Slurm do):
      used with ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``, the Job's ``JOB_COMPLETION_INDEX``, or the numbers of the
      Slurm step.
    * Slurm, Open MPI, Cloud TPU pods (one or several slices): JAX detects them.
    * Otherwise: one process.

    Waiting for the others is said after ten seconds. Where they do not come within ``join_seconds``, the process ends
    with ``HUNG``: the library's call cannot be broken off.

    Args:
        config: where the coordinator is.
        cpu_devices: run on this many virtual CPU devices a process; 0 leaves the platform alone.

    Raises:
        ValueError: a coordinator without a port, the number of processes or this process's id.
    """
    if cpu_devices:
        jax.config.update("jax_platforms", "cpu")
        virtual_cpu_devices(cpu_devices)
    if jax.distributed.is_initialized():
        return
    given: dict[str, Any] = {}  # the rest JAX finds out
    address = config.coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    if address:
        host, _, port = address.rpartition(":")
        if not (host and port.isdecimal()):
            raise ValueError(f"the coordinator's address {address!r} must be HOST:PORT")
        count = config.num_processes or _given("JAX_NUM_PROCESSES", _given("SLURM_STEP_NUM_TASKS", 0))
        index = config.process_id
        if index < 0:
            index = _given("JAX_PROCESS_ID", _given("JOB_COMPLETION_INDEX", _given("SLURM_PROCID", -1)))
        if count < 1 or not 0 <= index < count:
            raise ValueError(
                f"config.distributed.coordinator_address={address} also needs num_processes >= 1 and "
                f"process_id in [0, num_processes); got num_processes={count}, process_id={index}"
            )
        given = {"coordinator_address": address, "num_processes": count, "process_id": index}
    elif cpu_devices or not (_several(os.environ) or _on_tpu_vm(os.environ)):
        return
    with _told(config.join_seconds):
        jax.distributed.initialize(
            **given,
            heartbeat_timeout_seconds=config.heartbeat_seconds,
            initialization_timeout=config.join_seconds + _JAX_LATER_SECONDS,
        )


def _given(variable: str, default: int) -> int:
    value = os.environ.get(variable, str(default))
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"{variable}={value!r} must be a whole number") from None


@contextlib.contextmanager
def _told(seconds: int) -> Iterator[None]:
    """Says for whom the block waits, once it has taken a while, and ends the process after so many seconds."""
    joined = threading.Event()

    def watch() -> None:
        begin, said = time.monotonic(), False
        seen: set[str] = set()
        come = 0
        while not joined.wait(min(_LOOK_SECONDS, seconds)):
            now = _connected()
            # One that comes and goes is the probe of another process, and counts once it has stayed.
            come, seen = max(come, len(seen & now)), now
            waited = time.monotonic() - begin
            if waited >= seconds:
                words = f"waited {seconds} s in vain (config.distributed.join_seconds) for {_others(come)}"
                print(f"scaling train: error: {words}", file=sys.stderr, flush=True)
                os._exit(exit_codes.HUNG)
            if waited >= _TOLD_SECONDS and not said:
                print(f"waiting for {_others(come)}", file=sys.stderr, flush=True)
                said = True

    thread = threading.Thread(target=watch, daemon=True, name="join")
    thread.start()
    try:
        yield
    finally:
        joined.set()
        thread.join()


def _others(come: int) -> str:
    """The processes that a call of ``jax.distributed.initialize`` waits for, as far as it has found out.

    Args:
        come: number of processes that have connected to this one, if it is the first.
    """
    from jax._src.distributed import global_state  # no public function says where it is connecting to

    address, count, index = global_state.coordinator_address, global_state.num_processes, global_state.process_id
    if not address:
        return "word about the other processes of this run (its machines, its cluster)"
    host, _, port = address.rpartition(":")
    answer = _answer(host.strip("[]"), int(port))
    if index:
        return f"the first of the {count} processes of this run, at {address} ({answer}); this is process {index}"
    others = "other process" if count == 2 else f"other {count - 1} processes"
    return (
        f"the {others} of this run, which must reach this first one at {address} ({answer}); "
        f"{come + 1} of {count} have come"
    )


def _answer(host: str, port: int) -> str:
    """What happens to a connection to an address, in words."""
    found = ["its name could not be looked up so far"]

    def probe() -> None:
        try:
            socket.create_connection((host, port), _PROBE_SECONDS - 1).close()
            found[0] = "which answers"
        except socket.gaierror as error:
            found[0] = f"the name {host} cannot be resolved: {error.strerror}"
        except OSError as error:
            found[0] = f"which does not answer: {error.strerror or error}"

    # A thread, because looking a name up cannot be broken off.
    thread = threading.Thread(target=probe, daemon=True, name="probe")
    thread.start()
    thread.join(_PROBE_SECONDS)
    return found[0]


def _connected() -> set[str]:
    """Ends of the connections that JAX's service has accepted from other processes, if this is the first.

    The service does not tell; Linux does. Empty on other systems.
    """
    from jax._src.distributed import global_state

    address = global_state.coordinator_address
    if global_state.service is None or not address:
        return set()
    port = int(address.rpartition(":")[2])
    try:
        own = {str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}
        tables = (Path("/proc/self/net", name).read_text() for name in ("tcp", "tcp6"))
        lines = [line.split() for table in tables for line in table.splitlines()]
    except OSError:  # a file that was just closed, or no such system
        return set()
    established = [row for row in lines if row[3] == "01" and f"socket:[{row[9]}]" in own]
    # The last of an address and the port: an address of IPv4 is written in two ways.
    accepted = {remote[-13:] for _, local, remote, *_ in established if int(local[-4:], 16) == port}
    made = {local[-13:] for _, local, remote, *_ in established if int(remote[-4:], 16) == port}
    return accepted - made


def is_lost_peer(error: BaseException) -> bool:
    """Whether an exception means that another process of this run is gone, which the network or JAX's service said.

    JAX raises it as whatever its transport has: Gloo's on CPUs even as ``ValueError``.
    """
    if jax.process_count() == 1 or not isinstance(error, ValueError | RuntimeError):
        return False
    return any(words in str(error) for words in _LOST)


def least_of_processes(number: int) -> int:
    """The smallest over all processes; a collective where there are several."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.asarray([number])).min())


def total_of_processes(number: int) -> int:
    """Sum over all processes; a collective where there are several."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.asarray([number])).sum())
