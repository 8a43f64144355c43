"""The verb ``launch``: starts runs and sweeps on this machine or in a cloud."""

import argparse
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling import exit_codes
from scaling.paths import must_lead_somewhere

if TYPE_CHECKING:
    from launch.bill import Bill
    from launch.engine import Engine
    from launch.jobs import Launch
    from launch.settings import Settings
    from launch.slices import Slices

TARGETS = ("local", "slurm", "tpu_vm", "gke", "skypilot")
# options of Slurm alone, as the fields of launch.slurm_job.Cluster
_SLURM = (
    "partition",
    "account",
    "qos",
    "time",
    "gpus",
    "tasks",
    "cpus",
    "constraint",
    "container",
    "mounts",
    "sbatch",
    "signal_seconds",
)
# option -> the targets that take it; options that are not here belong to all targets
_OF = {
    "processes": ("local",),
    "topology": ("tpu_vm", "gke", "skypilot"),
    "slices": ("tpu_vm", "gke"),
    "spot": ("tpu_vm", "gke", "skypilot"),
    "reserved": ("tpu_vm",),
    "reservation": ("gke",),
    "zone": ("tpu_vm",),
    "project": ("tpu_vm",),
    "runtime_version": ("tpu_vm", "skypilot"),
    "labels": ("tpu_vm", "gke"),
    "service_account": ("tpu_vm", "gke"),
    "image": ("gke", "slurm"),
    "namespace": ("gke",),
    "context": ("gke",),
    "queue": ("gke",),
    "accelerators": ("skypilot",),
    "nodes": ("skypilot", "slurm"),
    "infra": ("skypilot",),
    **dict.fromkeys(_SLURM, ("slurm",)),
    "prices": ("tpu_vm", "gke", "skypilot"),
    "yes": ("tpu_vm", "gke", "skypilot"),
}

_LABEL_KEY = re.compile(r"[a-z]([a-z0-9_-]{0,61}[a-z0-9])?")
_LABEL_VALUE = re.compile(r"([a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?)?")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what ``launch`` reads besides ``--config``."""
    from launch.settings import add_options as add_supervision

    add = parser.add_argument
    add(
        "--target",
        choices=TARGETS,
        required=True,
        help="where to run: this machine, Slurm, Cloud TPU VMs, GKE or SkyPilot",
    )
    add("--dry_run", action="store_true", help="print the plan and every command and manifest; start nothing")
    add("--detach", action="store_true", help="continue in the background and print to FOLDER/launch.log")
    add(
        "--parallel",
        type=int,
        default=0,
        metavar="N",
        help="number of runs at a time (default: 1; local, slurm: as many as fit)",
    )
    add_supervision(parser)
    add("--poll_seconds", type=float, default=20.0, metavar="X", help=argparse.SUPPRESS)

    add("--topology", metavar="NAME", help="topology of the TPU slices, such as v5e:4x8 (default: that of the config)")
    add("--slices", type=int, metavar="N", help="number of slices for each run (default: 1)")
    add("--spot", action="store_true", default=None, help="use preemptible capacity")
    add("--prices", metavar="FILE", help="TOML file with lines 'chip = price of a chip-hour', and the same in [spot]")
    add("--yes", action="store_true", default=None, help="do not ask before something is billed")
    add("--labels", metavar="K=V,...", help="labels for the resources that are created")
    add("--service_account", metavar="NAME", help="service account of the machines (gke: of the pods)")

    add("--project", metavar="ID", help="tpu_vm: Google Cloud project (default: that of gcloud)")
    add("--zone", metavar="ZONE", help="tpu_vm: zone of the TPUs (required)")
    add("--reserved", action="store_true", default=None, help="tpu_vm: use a reservation")
    add(
        "--runtime_version",
        metavar="NAME",
        help="tpu_vm, skypilot: image of the machines (default: by the kind of TPU)",
    )

    add("--image", metavar="NAME", help="gke, slurm: container image in which scaling is installed")
    add("--namespace", metavar="NAME", help="gke: Kubernetes namespace (default: default)")
    add("--context", metavar="NAME", help="gke: context of kubectl's config (default: the current one)")
    add("--queue", metavar="NAME", help="gke: queue of Kueue")
    add("--reservation", metavar="NAME", help="gke: reservation of Compute Engine")

    add("--accelerators", metavar="NAME:N", help="skypilot: GPUs of a node, such as H100:8, instead of --topology")
    add("--nodes", type=int, metavar="N", help="slurm, skypilot: number of machines for each run (default: 1)")
    add(
        "--infra",
        metavar="WHERE",
        help="skypilot: cloud or region, such as gcp or aws/us-east-1 (default: the cheapest)",
    )

    add("--partition", metavar="NAME", help="slurm: partition, or several as a,b")
    add("--account", metavar="NAME", help="slurm: account that is charged")
    add("--qos", metavar="NAME", help="slurm: quality of service")
    add(
        "--time", metavar="LIMIT", help="slurm: time limit of a job, as 90 or 1-12:00:00; a run goes on in the next job"
    )
    add("--gpus", metavar="[KIND:]N", help="slurm: GPUs of each node, such as 8 or h100:8")
    add("--tasks", choices=("node", "gpu"), help="slurm: one process for each node (default) or for each GPU")
    add("--cpus", type=int, metavar="N", help="slurm: CPUs of each process")
    add("--constraint", metavar="FEATURES", help="slurm: features that the nodes must have")
    add("--container", choices=("pyxis", "apptainer"), help="slurm: what starts --image (default: pyxis)")
    add("--mounts", metavar="PATH,...", help="slurm: folders that the container gets besides those of the launch")
    add("--sbatch", action="append", metavar="OPTION", help="slurm: a further option of sbatch; may be repeated")
    add(
        "--signal_seconds",
        type=int,
        metavar="N",
        help="slurm: time before the limit at which a run saves and goes back into the queue (default: 120)",
    )


def run(options: argparse.Namespace) -> int:
    """Shows the plan and starts the runs.

    Returns:
        0 if all runs are finished (slurm, gke and skypilot with ``--detach``: if they are submitted); the code of a
        signal; or the code of the first run that failed.

    Raises:
        ValueError: options that do not belong to the target, an impossible config, or no consent to the cost.
    """
    from launch import jobs
    from launch.settings import check_seconds, settings

    _check(options)
    check_seconds("poll_seconds", options.poll_seconds)
    chosen, count = settings(options), options.slices or 1
    here = None if options.target == "slurm" else options.target == "local"
    launch = jobs.read(options.config, options.overrides, here, count)
    must_lead_somewhere(launch.state_folder)
    if options.target == "local":
        from launch import local

        if options.detach and not options.dry_run:
            return _detached(options, launch)
        return local.run(launch, chosen, options.parallel, options.dry_run)
    if options.target == "slurm":
        return _slurm(options, launch, chosen)
    from launch import bill, slices

    prices, spot = Path(options.prices) if options.prices else None, bool(options.spot)
    if options.target == "skypilot" and options.accelerators:
        chip, total, where = _gpus(options)
        return _skypilot(options, launch, None, bill.of_launch(launch, where, chip, total, spot, prices))
    if options.nodes is not None:
        raise ValueError("--nodes belongs to --accelerators; the topology of a TPU slice gives its number of machines")
    found = slices.find(options.topology, options.config, count)
    where = f"{found.count} x {found.name}"
    cost = bill.of_launch(launch, where, found.chip.name, found.chips, spot, prices)
    if options.target == "skypilot":
        return _skypilot(options, launch, found, cost)
    return (_tpu_vm if options.target == "tpu_vm" else _gke)(options, launch, chosen, found, cost)


def _tpu_vm(options: argparse.Namespace, launch: "Launch", chosen: "Settings", found: "Slices", cost: "Bill") -> int:
    from launch import bill, state, tpu_vm

    if not options.zone:
        raise ValueError("--target=tpu_vm needs --zone=ZONE, such as us-west4-a")
    assert found.accelerator_type  # Cloud TPU has the kind
    if options.spot and options.reserved:
        raise ValueError("--spot and --reserved exclude each other")
    folder, known = launch.state_folder, state.read(launch.state_folder)
    if known and known.get("target") != "tpu_vm":
        raise ValueError(f"{folder} is a launch of --target={known.get('target')}; use another config.workdir")
    asked = {
        "zone": options.zone,
        "project": options.project or "",
        "topology": found.name,
        "slices": found.count,
        "runtime_version": options.runtime_version or found.runtime_version,
        "spot": bool(options.spot),
        "reserved": bool(options.reserved),
        "service_account": options.service_account or "",
        "labels": _labels(options.labels),
        "max_restarts": chosen.max_restarts,
        "first_delay": chosen.first_delay,
    }
    values = tpu_vm.planned(launch, asked, options.parallel, known)
    held = [slot["resource"] for slot in values["slots"] if slot["stage"] != tpu_vm.ABSENT]
    print(cost.to_text(max(1, options.parallel)))
    if held:
        print(f"using {', '.join(held)}, which exist already")
    if options.dry_run:
        print("\nwould run:", *tpu_vm.commands(values, folder, chosen), sep="\n  ")
        return exit_codes.OK
    new = [slot["resource"] for slot in values["slots"] if slot["stage"] == tpu_vm.ABSENT]
    if new:
        bill.consent(bool(options.yes), [f"{found.count} x {found.name} ({name})" for name in new])
    if options.detach:
        return _detached(options, launch)
    code = tpu_vm.run(launch, values, chosen, options.poll_seconds)
    print(f"see: scaling status {folder}")
    return code


def _gke(options: argparse.Namespace, launch: "Launch", chosen: "Settings", found: "Slices", cost: "Bill") -> int:
    from launch import gke

    if not options.image:
        raise ValueError("--target=gke needs --image=NAME, a container with this package and jax[tpu]")
    cloud = {
        "image": options.image,
        "topology": found.name,
        "slices": found.count,
        "namespace": options.namespace or "default",
        "context": options.context or "",
        "queue": options.queue or "",
        "spot": bool(options.spot),
        "reservation": options.reservation or "",
        "service_account": options.service_account or "",
        "labels": _labels(options.labels),
    }
    # JobSet counts all restarts of a run, also those after which it made progress, so days on spot need a high limit.
    restarts = max(chosen.max_restarts, 100) if options.spot else chosen.max_restarts
    cluster = gke.cluster_of(cloud, restarts, chosen.grace_seconds)
    return _hand_over(options, launch, cloud, cost, lambda values, _: gke.Gke(launch, cluster, values["id"]))


def _gpus(options: argparse.Namespace) -> tuple[str, int, str]:
    """The kind and the number of the GPUs of a run, and a text with both."""
    from scaling.catalog import chips

    kind, _, count = options.accelerators.partition(":")
    chip = chips.find(kind)
    if options.topology:
        raise ValueError("--accelerators and --topology exclude each other")
    if chip is None or not (count or "1").isdecimal() or int(count or 1) < 1:
        known = ", ".join(dict.fromkeys(chip.name for chip in chips.CHIPS))
        raise ValueError(f"--accelerators={options.accelerators} must be NAME:N, with one of {known}")
    nodes = options.nodes or 1
    return chip.name, nodes * int(count or 1), f"{nodes} x {options.accelerators}"


def _skypilot(options: argparse.Namespace, launch: "Launch", found: "Slices | None", cost: "Bill") -> int:
    from launch import skypilot

    cloud = {
        "topology": found.name if found else "",
        "accelerators": "" if found else options.accelerators,
        "nodes": options.nodes or 1,
        "infra": options.infra or "",
        "spot": bool(options.spot),
        "runtime_version": (options.runtime_version or found.runtime_version) if found else "",
    }
    machines = skypilot.machines_of(cloud, options.max_restarts)
    return _hand_over(
        options,
        launch,
        cloud,
        cost,
        lambda values, folder: skypilot.SkyPilot(launch, machines, values["id"], folder),
    )


def _hand_over(
    options: argparse.Namespace,
    launch: "Launch",
    cloud: dict[str, Any],
    cost: "Bill",
    make: Callable[[dict[str, Any], Any], "Engine"],
) -> int:
    """Shows the plan, asks for consent, and submits the runs to an engine that restarts them itself."""
    from launch import bill, engine, state

    if options.parallel:
        raise ValueError(
            f"--parallel: --target={options.target} has its own queue, which decides how many runs run at a time"
        )
    values = engine.planned(launch, options.target, cloud, state.read(launch.state_folder))
    handler = make(values, launch.state_folder)
    print(cost.to_text(len(launch.runs)))
    if options.dry_run:
        return _would_run(handler, launch)
    bill.consent(bool(options.yes), [f"{len(launch.runs)} runs on {cost.where} each"])
    return _submitted(options, launch, handler, values)


def _slurm(options: argparse.Namespace, launch: "Launch", chosen: "Settings") -> int:
    """Shows the plan, lets Slurm check the jobs, and submits them; nothing is written if Slurm refuses them."""
    from launch import bill, engine, slurm, slurm_job, state
    from scaling.object_store import is_remote
    from scaling.sweep.progress import refuse_changed

    given = {name: getattr(options, name) for name in (*_SLURM, "nodes", "image", "parallel")}
    cloud = {name: value for name, value in given.items() if value} | {"max_restarts": chosen.max_restarts}
    if options.mounts:
        cloud["mounts"] = options.mounts.split(",")
    cluster, folder = slurm_job.cluster_of(cloud), Path(launch.state_folder)
    if options.parallel and not launch.sweep:
        raise ValueError("--parallel bounds the runs of a sweep; this is one run")
    refuse_changed([run for run in launch.runs if not is_remote(run.config.workdir)])
    for run in launch.runs:
        bill.resolved(run, cluster.devices(run.config.mesh.cpu_devices), cluster.words)
    known = state.read(folder)
    if known.get("target") == "slurm" and not options.dry_run:
        slurm.refresh(known, folder)
    values = engine.planned(launch, options.target, cloud, known)
    handler = slurm.Slurm(cluster, values, folder)
    width = max(3, *(len(run.name) for run in launch.runs))
    print(f"{'run':<{width}}       tokens")
    for run in launch.runs:
        print(f"{run.name:<{width}} {run.config.train.tokens:>12,}")
    at_a_time = f", {cluster.parallel} at a time" if cluster.parallel else ""
    count = len(launch.runs)
    print(f"\n{count} run{'s' * (count > 1)}{at_a_time}, {'each ' * (count > 1)}on {cluster.words}")
    if options.dry_run:
        return _would_run(handler, launch)
    handler.check(launch.runs)
    return _submitted(options, launch, handler, values)


def _would_run(handler: "Engine", launch: "Launch") -> int:
    from launch.engine import groups

    print("\nwould run:", *(handler.typed(runs) for runs in groups(handler, launch.runs)), sep="\n")
    return exit_codes.OK


def _submitted(options: argparse.Namespace, launch: "Launch", handler: "Engine", values: dict[str, Any]) -> int:
    from launch import engine

    folder = launch.state_folder
    code = engine.run(handler, launch, values, not options.detach, options.poll_seconds)
    print(f"see: scaling status {folder}; end: scaling stop {folder}")
    return code


def _labels(given: str | None) -> dict[str, str]:
    """The labels of ``k=v,k=v``, checked against the rules of both Google Cloud and Kubernetes."""
    from launch.jobs import LABEL
    from scaling.config.refusal import cut, shown

    found: dict[str, str] = {}
    text = given or ""
    for pair in text.split(",") if text else []:
        key, _, value = pair.partition("=")
        if not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
            raise ValueError(
                f"--labels={cut(text)}: {shown(pair)} must be key=value of lower-case letters, digits, - and _ "
                "between them, at most 63 characters each, the key beginning with a letter"
            )
        if key in found or key == LABEL:
            why = "given twice" if key in found else "a label that the launcher sets"
            raise ValueError(f"--labels={cut(text)}: {key} is {why}")
        found[key] = value
    return found


def _check(options: argparse.Namespace) -> None:
    for name, targets in _OF.items():
        given = getattr(options, name)
        if given is not None and options.target not in targets and not (name == "processes" and given == 1):
            raise ValueError(f"--{name} belongs to --target={' or '.join(targets)}, not to {options.target}")
    if options.nodes is not None and options.nodes < 1:
        raise ValueError(f"--nodes={options.nodes} must be at least 1")
    if options.parallel < 0 or (options.slices is not None and options.slices < 1):
        raise ValueError("--parallel must not be negative, --slices at least 1")


def _detached(options: argparse.Namespace, launch: "Launch") -> int:
    """Starts the same command as a background process in a session of its own."""
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
    print(f"process {process.pid} continues in the background and prints to {folder / 'launch.log'}")
    print(f"see: scaling status {folder}; stop: scaling stop {folder}")
    return exit_codes.OK
