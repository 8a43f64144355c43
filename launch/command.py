"""The options of ``scaling launch``, and what they run."""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from scaling import exit_codes

if TYPE_CHECKING:
    from launch.jobs import Launch

TARGETS = ("local", "tpu_vm", "gke", "skypilot")
# Options that belong to some targets only.
_OF = {
    "processes": ("local",),
    "topology": ("tpu_vm", "gke", "skypilot"),
    "slices": ("tpu_vm", "gke"),
    "spot": ("tpu_vm", "gke", "skypilot"),
    "reserved": ("tpu_vm",),
    "reservation": ("gke",),
    "zone": ("tpu_vm", "skypilot"),
    "project": ("tpu_vm",),
    "runtime_version": ("tpu_vm", "skypilot"),
    "labels": ("tpu_vm", "gke"),
    "service_account": ("tpu_vm", "gke"),
    "image": ("gke",),
    "namespace": ("gke",),
    "queue": ("gke",),
    "accelerators": ("skypilot",),
    "nodes": ("skypilot",),
    "infra": ("skypilot",),
    "prices": ("tpu_vm", "gke", "skypilot"),
    "yes": ("tpu_vm", "gke", "skypilot"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what ``launch`` reads besides ``--config``."""
    from launch.supervisor import add_options as add_supervision

    add = parser.add_argument
    add("--target", choices=TARGETS, required=True, help="where: this machine, Cloud TPU VMs, GKE, SkyPilot")
    add("--dry_run", action="store_true", help="print the plan and every command and manifest; start nothing")
    add("--detach", action="store_true", help="go on in the background; FOLDER/launch.log has what it prints")
    add("--parallel", type=int, default=0, metavar="N", help="runs at a time (default: 1; local: as there is room)")
    add_supervision(parser)

    add("--topology", metavar="NAME", help="TPU slices of this form, such as v5e:4x8 (default: that of the config)")
    add("--slices", type=int, metavar="N", help="slices of each run (default: 1)")
    add("--spot", action="store_true", default=None, help="preemptible capacity")
    add("--prices", metavar="FILE", help="TOML: chip = price of a chip-hour, and the same in [spot]")
    add("--yes", action="store_true", default=None, help="do not ask before something is billed")
    add("--labels", metavar="K=V,...", help="labels of what is created")
    add("--service_account", metavar="NAME", help="that the machines (gke: the pods) act as")

    add("--project", metavar="ID", help="tpu_vm: Google Cloud project (default: gcloud's own)")
    add("--zone", metavar="ZONE", help="tpu_vm: needed; skypilot: optional")
    add("--reserved", action="store_true", default=None, help="tpu_vm: from a reservation")
    add("--runtime_version", metavar="NAME", help="tpu_vm: image of the machines (default: by the kind of TPU)")

    add("--image", metavar="NAME", help="gke: container with scaling installed")
    add("--namespace", metavar="NAME", help="gke: default: default")
    add("--queue", metavar="NAME", help="gke: Kueue's queue")
    add("--reservation", metavar="NAME", help="gke: of Compute Engine")

    add("--accelerators", metavar="NAME:N", help="skypilot: GPUs of a node, such as H100:8, instead of --topology")
    add("--nodes", type=int, metavar="N", help="skypilot: machines of a run (default: 1)")
    add("--infra", metavar="WHERE", help="skypilot: such as gcp or aws/us-east-1 (default: the cheapest)")


def run(options: argparse.Namespace) -> int:
    """Shows the plan and starts it.

    Returns:
        0 if all runs are finished (gke, skypilot: started, too); the code of a signal; else that of the first run
        that failed.

    Raises:
        ValueError: options that make no sense for the target, an impossible config, or no consent to a bill.
    """
    from launch import jobs
    from launch.supervisor import settings

    _check(options)
    slices = options.slices or 1
    launch = jobs.read(options.config, options.overrides, options.target == "local", slices)
    chosen = settings(options)
    if options.target == "local":
        from launch import local

        if options.detach and not options.dry_run:
            return _detached(options, launch)
        return local.run(launch, chosen, options.parallel, options.dry_run)
    raise ValueError(f"--target={options.target} is not there yet")


def _check(options: argparse.Namespace) -> None:
    for name, targets in _OF.items():
        given = getattr(options, name)
        if given is not None and options.target not in targets and not (name == "processes" and given == 1):
            raise ValueError(f"--{name} belongs to --target={' or '.join(targets)}, not to {options.target}")
    if options.parallel < 0 or (options.slices is not None and options.slices < 1):
        raise ValueError("--parallel must not be negative, --slices at least 1")


def _detached(options: argparse.Namespace, launch: "Launch") -> int:
    """Starts the same command once more, in a session of its own."""
    folder = Path(launch.state_folder)
    folder.mkdir(parents=True, exist_ok=True)
    arguments = [argument for argument in sys.argv[1:] if argument not in ("--detach", "-detach", "--yes")]
    consent = ["--yes"] if options.target != "local" else []
    with (folder / "launch.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "scaling", *arguments, *consent],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    print(f"process {process.pid} goes on in the background: {folder / 'launch.log'}")
    print(f"see: scaling status {folder}; stop: scaling stop {folder}")
    return exit_codes.OK
