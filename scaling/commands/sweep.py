"""The verb ``sweep``: plans or trains all runs of a sweep."""

import argparse
import shlex
import sys
from typing import TYPE_CHECKING

from scaling import exit_codes

if TYPE_CHECKING:
    from scaling.sweep.machine import Machine
    from scaling.sweep.plan import Run


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what ``sweep`` reads besides ``--config``."""
    add = parser.add_argument
    add("--dry_run", action="store_true", help="print every run with parameters, tokens, FLOPs and hours; train none")
    add(
        "--parallel",
        type=int,
        default=0,
        metavar="N",
        help="number of runs at a time (default: as many as the machine has room for)",
    )
    add("--device", metavar="KIND", help="dry_run: estimate for this kind of device, such as 'TPU v5p' or H100")
    add("--devices", type=int, metavar="N", help="dry_run: number of these devices (default: 1)")
    add(
        "--mfu",
        type=float,
        default=0.3,
        metavar="X",
        help="utilisation that is assumed until runs are measured (default: 0.3)",
    )


def run(options: argparse.Namespace) -> int:
    """Plans the runs, then prints or trains them.

    Returns:
        0 if all runs are finished; the code of a signal; else that of the first run that failed.

    Raises:
        ValueError: a file without a sweep, options that cannot be combined, or a sweep that differs from its runs.
    """
    from scaling.sweep.machine import probe
    from scaling.sweep.progress import refuse_changed
    from scaling.sweep.read import runs_of

    if options.config is None:
        raise ValueError("needs --config=FILE, a sweep such as sweeps/cpu_ladder")
    if options.parallel < 0 or not 0 < options.mfu <= 1 or (options.devices is not None and options.devices < 1):
        raise ValueError("--parallel must not be negative, --devices at least 1, --mfu in (0, 1]")
    if options.device and (options.parallel or not options.dry_run):
        raise ValueError(
            "--device belongs to --dry_run, without --parallel; a sweep trains on the devices that are here"
        )
    if options.devices and not options.device:
        raise ValueError(f"--devices={options.devices} belongs to --device=KIND")
    runs = runs_of(options.config, options.overrides, local=False)
    first = runs[0].config
    if first.distributed.coordinator_address or first.mesh.slices > 1:
        raise ValueError(
            "a sweep starts its runs on this machine, and these ask for several processes (config.distributed, "
            "config.mesh.slices); give each run's plan to your cluster instead"
        )
    if options.device:
        return _dry_run(options, runs, _named(options.device, options.devices or 1), 1)
    refuse_changed(runs)
    machine = probe(first.mesh.cpu_devices)
    slots = machine.slots(first.mesh, options.parallel)
    return _dry_run(options, runs, machine, slots) if options.dry_run else _train(options, runs, machine, slots)


def _dry_run(options: argparse.Namespace, runs: list["Run"], machine: "Machine", slots: int) -> int:
    from scaling.sweep.display import plan_to_text
    from scaling.sweep.progress import Clock, progress

    clock = Clock(machine.unit_flops * len(machine.units) / slots, options.mfu)
    # Speeds that were measured here do not apply to other devices.
    found = {} if options.device else {run.name: progress(run) for run in runs}
    for run in runs if found else ():
        clock.learn(run, found[run.name])
    source = f"{options.mfu:.0%} of {machine.source}"
    if clock.measured:
        source = f"speed of {clock.measured} sizes measured here"
    finished = frozenset(name for name, state in found.items() if state.finished)
    print(plan_to_text(runs, clock, slots, source, finished))
    return exit_codes.OK


def _train(options: argparse.Namespace, runs: list["Run"], machine: "Machine", slots: int) -> int:
    from etils import epath

    from scaling.paths import must_lead_somewhere
    from scaling.runs.lock import held
    from scaling.sweep.display import Display, outcome
    from scaling.sweep.runner import Runner

    folder = epath.Path(runs[0].config.workdir).parent
    must_lead_somewhere(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder / ".lock", f"another sweep is running in {folder}; wait for it, or use another config.workdir"):
        runner = Runner(runs, machine, slots, options.mfu)
        with Display() as display:
            code = runner.run(display)
    print(outcome(runner), file=sys.stderr if code else sys.stdout)
    if not code:
        print(f"next: scaling report {shlex.quote(str(folder))}")
    return code


def _named(kind: str, count: int) -> "Machine":
    from scaling.catalog.chips import CHIPS
    from scaling.sweep.machine import Machine
    from scaling.train.throughput import data_sheet

    peak = data_sheet(kind, count)
    if peak is None:
        known = ", ".join(dict.fromkeys(chip.kinds[0] for chip in CHIPS))
        raise ValueError(f"--device={kind}: the peak of this device is not known; use one of {known}")
    return Machine("tpu", kind, tuple(range(count)), peak.flops / count, peak.source)
