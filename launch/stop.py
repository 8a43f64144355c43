"""Stops runs through the engine on which they were launched, or through their launcher."""

import contextlib
import os
import signal
import sys
import time

from etils import epath

from launch import engine, gke, processes, skypilot, slurm, slurm_job, state, tpu_vm
from launch.find import Found
from launch.settings import Settings
from scaling.sweep.states import RUNNING, STOPPED

_POLL_SECONDS = 0.2


def stop(launch: Found, chosen: Settings, poll_seconds: float) -> list[str]:
    """Stops the runs of a launch after they save, and releases their machines.

    Args:
        launch: on any engine.
        chosen: ``grace_seconds`` is the time for saving before runs are killed.
        poll_seconds: time between two requests to Cloud TPU.

    Returns:
        Processes that still run, or resources that are still held.

    Raises:
        ValueError: another machine started the launch and must stop it, or its engine refuses to.
    """
    if launch.target == "local":
        return _local(launch, chosen.grace_seconds)
    return _cloud(launch, chosen, poll_seconds)


def _cloud(launch: Found, chosen: Settings, poll_seconds: float) -> list[str]:
    """Stops runs in a cloud: through the launcher if it is alive, otherwise directly."""
    launcher, known = launch.known.get("launcher"), launch.known
    if launcher and state.alive(launcher):
        _signal(launcher["pid"], signal.SIGTERM)
        if launch.target == "tpu_vm":
            print(f"the launcher, process {launcher['pid']}, stops its runs ...", file=sys.stderr, flush=True)
        while state.alive(launcher):
            time.sleep(_POLL_SECONDS)
        known = state.read(launch.folder)
    elif launcher and not state.here(launcher) and launch.target == "tpu_vm" and known.get("state") == RUNNING:
        raise ValueError(
            f"{launch.folder} was launched on {launcher['host']}; stop it there, or, if that machine is gone, start "
            "the same launch here, which takes over, and press ctrl-C"
        )
    folder = epath.Path(launch.folder)
    if launch.target == "tpu_vm":
        return tpu_vm.stop(folder, known, chosen, poll_seconds)
    if launch.target == "slurm":
        cluster = slurm_job.cluster_of(known["cloud"])
        return engine.stop(slurm.Slurm(cluster, known, launch.folder, chosen.grace_seconds), folder, known)
    if launch.target == "gke":
        return engine.stop(gke.Gke(None, gke.cluster_of(known["cloud"], 0, 60.0), known["id"]), folder, known)
    return engine.stop(
        skypilot.SkyPilot(None, skypilot.machines_of(known["cloud"], 0), known["id"], folder), folder, known
    )


def _local(launch: Found, grace_seconds: float) -> list[str]:
    """Stops the launcher first, so that it starts no other run, then supervisors, then processes that they left."""
    launcher = launch.known.get("launcher")
    everyone = [launcher] if launcher else []
    states = {name: state.read(run_dir) for name, run_dir in launch.runs.items() if run_dir.exists()}
    for known in states.values():
        everyone += [known["supervisor"]] if known.get("supervisor") else []
    for process in everyone:
        if not state.here(process) and launch.known.get("state") == RUNNING:
            raise ValueError(f"{launch.folder} was launched on {process['host']}; stop it there")
    asked = [processes.Child(process) for process in everyone]
    for child in asked:
        child.send(signal.SIGTERM)
        if child.identity is launcher:  # it passes the signal on to its runs
            processes.wait([child], grace_seconds)
    over = processes.wait(asked, grace_seconds)
    for name, run_dir in launch.runs.items():
        known = state.read(run_dir) if run_dir.exists() else {}
        orphans = [processes.Child(child) for child in known.get("children", [])]
        if any(orphan.running for orphan in orphans):
            processes.end(orphans, grace_seconds if over else 0.0)
            state.write(run_dir, known | {"state": STOPPED, "children": []})
            print(f"{name}: ended the processes that its supervisor had left running", file=sys.stderr)
    for child in asked:
        child.send(signal.SIGKILL)
    processes.wait(asked, 10.0)
    return [str(child.identity["pid"]) for child in asked if child.running]


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
