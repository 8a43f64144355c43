"""The options of ``scaling sweep``, and what they run."""

import argparse
import sys

from scaling import exit_codes
from scaling.sweep.machine import Machine


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what ``sweep`` reads besides ``--config``."""
    add = parser.add_argument
    add("--dry_run", action="store_true", help="print every run with parameters, tokens, FLOPs and hours; train none")
    add("--parallel", type=int, default=0, metavar="N", help="runs at a time (default: as many as there is room for)")
    add("--device", metavar="KIND", help="dry_run: estimate for this kind of device, such as 'TPU v5p' or H100")
    add("--devices", type=int, default=1, metavar="N", help="dry_run: how many of them (default: 1)")
    add("--mfu", type=float, default=0.3, metavar="X", help="utilisation assumed until runs are measured (0.3)")


def run(options: argparse.Namespace) -> int:
    """Plans, then prints or trains.

    Returns:
        0 if all runs are finished; the code of a signal; else that of the first run that failed.

    Raises:
        ValueError: a file that describes no sweep, options that make no sense, or runs that were made otherwise.
    """
    from scaling.config_file import call, run_name
    from scaling.sweep.machine import probe
    from scaling.sweep.plan import Sweep, plan

    if options.config is None:
        raise ValueError("needs --config=FILE, a sweep such as experiments/sweeps/cpu_ladder.py")
    if options.parallel < 0 or options.devices < 1 or not 0 < options.mfu <= 1:
        raise ValueError("--parallel must not be negative, --devices at least 1, --mfu in (0, 1]")
    sweep = call(options.config, "get_sweep", "get_config")
    if not isinstance(sweep, Sweep):
        raise ValueError(f"{options.config}: get_sweep() must return a scaling.sweep.plan.Sweep, got {sweep!r}")
    runs = plan(sweep, options.overrides, run_name(options.config))
    first = runs[0].config
    if first.distributed.coordinator_address or first.mesh.slices > 1:
        raise ValueError(
            "a sweep starts its runs on this machine, and these ask for several processes (config.distributed, "
            "config.mesh.slices); give each run's plan to your cluster instead"
        )
    elsewhere = options.dry_run and options.device
    machine = _named(options.device, options.devices) if elsewhere else probe(first.mesh.cpu_devices)
    slots = 1 if elsewhere else machine.slots(first.mesh, options.parallel)
    return _dry_run(options, runs, machine, slots) if options.dry_run else _train(options, runs, machine, slots)


def _dry_run(options: argparse.Namespace, runs: list, machine: Machine, slots: int) -> int:
    from scaling.sweep.display import plan_to_text
    from scaling.sweep.progress import Clock, progress

    clock = Clock(machine.unit_flops * len(machine.units) / slots, options.mfu)
    found = {run.name: progress(run) for run in runs}
    for run in () if options.device else runs:
        clock.learn(run, found[run.name])
    source = f"{options.mfu:.0%} of {machine.source}"
    if clock.measured:
        source = f"speed of {clock.measured} sizes measured here"
    finished = frozenset(name for name, state in found.items() if state.finished)
    print(plan_to_text(runs, clock, slots, source, finished))
    return exit_codes.OK


def _train(options: argparse.Namespace, runs: list, machine: Machine, slots: int) -> int:
    from scaling.sweep.display import Display, outcome
    from scaling.sweep.progress import changed_knobs
    from scaling.sweep.runner import Runner

    if options.device:
        raise ValueError("--device belongs to --dry_run; a sweep trains on the devices that are here")
    for run in runs:
        if changed := changed_knobs(run):
            raise ValueError(
                f"{run.config.workdir} was made by another sweep: {changed[0]}; "
                "use another config.workdir, or delete it"
            )
    runner = Runner(runs, machine, slots)
    with Display() as display:
        code = runner.run(display)
    print(outcome(runner), file=sys.stderr if code else sys.stdout)
    if not code:
        print(f"next: scaling report {runs[0].config.workdir.rpartition('/')[0]}")
    return code


def _named(kind: str, count: int) -> Machine:
    from scaling.train.throughput import BF16_PEAK, data_sheet

    peak = data_sheet(kind, count)
    if peak is None:
        known = ", ".join(name for name, _ in BF16_PEAK)
        raise ValueError(f"--device={kind} is not a device whose peak is known; one of {known}")
    return Machine("tpu", kind, tuple(range(count)), peak.flops / count, peak.source)
