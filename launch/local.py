"""``--target=local``: runs as processes of this machine, each with a supervisor of its own.

The runner of ``scaling sweep`` distributes cores and devices; it starts ``launch.supervisor`` for each run and not
``scaling train``. Supervisors outlive the launcher, which finds them again by the lock that each of them holds.
"""

import os
import shlex
import sys
from typing import Any

from etils import epath

from launch import jobs, processes, state
from launch.jobs import Launch
from launch.settings import Settings
from scaling import exit_codes
from scaling.runs.lock import held, is_held
from scaling.sweep.display import Display, outcome, plan_to_text
from scaling.sweep.machine import Machine, probe
from scaling.sweep.progress import Clock, progress, refuse_changed
from scaling.sweep.runner import Runner
from scaling.sweep.states import FAILED, FINISHED, RUNNING, STOPPED

_UTILISATION = 0.3  # of the peak, assumed until a run was measured


def run(launch: Launch, chosen: Settings, parallel: int, dry_run: bool) -> int:
    """Runs everything that is not finished, or only prints it with ``dry_run``.

    Args:
        launch: what to run; its folder is local.
        chosen: settings of the supervision of each run.
        parallel: number of runs at a time; 0 = as many as fit.
        dry_run: print the plan and every command, and start nothing.

    Returns:
        0 if all runs are finished; the code of a signal; else that of the first run that failed.

    Raises:
        ValueError: a run does not fit, runs exist with other knobs, or another launcher runs the same sweep.
    """
    refuse_changed(launch.runs)
    mesh = launch.runs[0].config.mesh
    machine = probe(mesh.cpu_devices)
    if machine.platform == "tpu" and chosen.processes > 1:
        raise ValueError(
            f"--processes={chosen.processes}: one process uses all TPU chips of a host; leave the option out"
        )
    if machine.platform == "gpu":
        processes.environments(chosen.processes, {"CUDA_VISIBLE_DEVICES": ",".join(map(str, machine.units))})
    slots = min(machine.slots(mesh, parallel), len(launch.runs))
    if dry_run:
        print(_dry_run(launch, chosen, machine, slots))
        return exit_codes.OK
    if not launch.sweep:  # the supervisor writes its launch.json
        return _run(launch, chosen, machine, slots)
    folder = launch.state_folder
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder / ".lock", f"another sweep is running in {folder}; wait for it, or use another config.workdir"):
        values = state.read(folder) | {"target": "local", "runs": [run.name for run in launch.runs], "state": RUNNING}
        state.write(folder, values | {"launcher": state.identity(os.getpid())})
        code = _run(launch, chosen, machine, slots)
        ends = {exit_codes.OK: FINISHED} | dict.fromkeys(exit_codes.OF_SIGNAL.values(), STOPPED)
        state.write(folder, values | {"state": ends.get(code, FAILED), "exit_code": code})
    return code


def supervised(run_dir: epath.Path) -> bool:
    """Whether a supervisor of the run is alive."""
    return is_held(run_dir / state.LOCK)


def command(chosen: Settings) -> list[str]:
    """What the runner starts for each run, with ``--config=PLAN``."""
    return [sys.executable, "-m", "launch.supervisor", *chosen.arguments()]


def _run(launch: Launch, chosen: Settings, machine: Machine, slots: int) -> int:
    runner = Runner(launch.runs, machine, slots, _UTILISATION, command(chosen), supervised)
    with Display() as display:
        code = runner.run(display)
    print(outcome(runner), file=sys.stderr if code else sys.stdout)
    print(f"see: scaling status {shlex.quote(launch.folder)}")
    return code


def _dry_run(launch: Launch, chosen: Settings, machine: Machine, slots: int) -> str:
    clock = Clock(machine.unit_flops * len(machine.units) / slots, _UTILISATION)
    found = {run.name: progress(run) for run in launch.runs}
    for run in launch.runs:
        clock.learn(run, found[run.name])
    source = f"speed of {clock.measured} sizes measured here" if clock.measured else f"30% of {machine.source}"
    finished = frozenset(name for name, so_far in found.items() if so_far.finished)
    lines = [plan_to_text(launch.runs, clock, slots, source, finished), "", "would run, each with a supervisor:"]
    more: dict[str, Any] = {}
    if chosen.processes > 1:
        more = {"coordinator_address": "127.0.0.1:PORT", "num_processes": chosen.processes, "process_id": "I"}
    for run in launch.runs:
        if run.name not in finished:
            plan = f"{run.config.workdir}/plan.json"
            lines.append(f"  {shlex.join([*command(chosen), f'--config={plan}'])}")
            lines.append(f"    {shlex.join(jobs.command(plan, more))}" + f"  (x {chosen.processes})" * bool(more))
    return "\n".join(lines)
