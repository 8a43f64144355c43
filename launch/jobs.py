"""Turns ``--config`` into jobs: one run, or all runs of a sweep, each with its resolved config and its command."""

import dataclasses
import hashlib
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from scaling.config import schema as cfg
from scaling.config.refusal import shown
from scaling.object_store import is_remote
from scaling.paths import is_url
from scaling.runs.paths import PLAN
from scaling.sweep.plan import Run
from scaling.sweep.runner import write_plan

# Names become folders, labels and parts of commands, so only these characters are allowed.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+=-]{0,127}")
LABEL = "scaling-launch"  # the label that holds the number of the launch, on everything that a launch creates
_LABEL_LENGTH = 40  # of 63 characters of a DNS label; engines append the numbers of slices, hosts and attempts


@dataclasses.dataclass(frozen=True)
class Launch:
    """The runs of ``--config``.

    Attributes:
        name: of the run or the sweep.
        folder: the run directory or the folder of the sweep, as in the config.
        runs: in the order of their cost, the cheapest first.
        sweep: whether the file has ``get_sweep``.
    """

    name: str
    folder: str
    runs: tuple[Run, ...]
    sweep: bool

    @property
    def remote(self) -> bool:
        """Whether the runs write to an object store."""
        return is_remote(self.folder)

    @property
    def state_folder(self) -> epath.Path:
        """The folder in which this machine keeps the state: ``folder`` if that is local, else ``runs/<name>``."""
        return epath.Path(f"runs/{self.name}" if self.remote else self.folder)


def read(spec: str | None, overrides: Sequence[str], local: bool | None, slices: int = 1) -> Launch:
    """Reads an experiment file.

    Args:
        spec: ``FILE`` or ``FILE:argument`` with ``get_config`` or ``get_sweep``, or a run's ``config.json``.
        overrides: ``--config.a.b=value``, for all runs.
        local: the runs must write to a folder of this machine, or, if false, to an object store; None = either,
            because the machines of the runs have the same folders.
        slices: TPU slices of each run, which become ``config.mesh.slices``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an impossible config, a name or folder that cannot be used.
    """
    from scaling.config.files import is_sweep, load, run_name
    from scaling.sweep.plan import single
    from scaling.sweep.read import runs_of

    if not spec:
        raise ValueError("needs --config=FILE, a run or a sweep such as sweeps/cpu_ladder")
    overrides = [*overrides, *([f"--config.mesh.slices={slices}"] if slices > 1 else [])]
    sweep = is_sweep(spec)
    name = check_name(re.sub(r"[^A-Za-z0-9_.+=-]", "-", run_name(spec)))
    if sweep:
        runs = runs_of(spec, overrides, bool(local))
        folder = runs[0].config.workdir.rpartition("/")[0]
    else:
        if spec.endswith(".json"):
            name = check_name(Path(spec).absolute().parent.name)
        runs = [single(load(spec, overrides), name)]
        folder = runs[0].config.workdir
    for run in runs:
        check_name(run.name)
        if local is not None:
            _check_folders(run.config, local)
        if run.config.distributed != cfg.Distributed():
            raise ValueError(f"{run.name}: config.distributed is set by the launcher; leave it out")
    return Launch(name, folder, tuple(runs), sweep)


def check_name(name: str) -> str:
    """Returns the name.

    Raises:
        ValueError: a run must not have this name.
    """
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{shown(name)} cannot name a run: at most 128 letters, digits and _ . + = -, of which the first is a "
            "letter or digit"
        )
    return name


def label(name: str, length: int = _LABEL_LENGTH) -> str:
    """A name that clouds accept: at most ``length`` lower-case letters, digits and dashes, the first a letter.

    A part of its hash is appended to a name that is changed, so that different names stay different.
    """
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    plain = plain if plain[:1].isalpha() else f"r-{plain}".rstrip("-")
    if plain == name and len(plain) <= length:
        return plain
    digest = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"{plain[: length - 7].rstrip('-')}-{digest}"


def command(plan: str, distributed: Mapping[str, Any] | None = None, python: str = sys.executable) -> list[str]:
    """The command that trains a ``plan.json``; ``distributed`` sets knobs of ``config.distributed``."""
    given = [f"--config.distributed.{knob}={value}" for knob, value in (distributed or {}).items()]
    return [python, "-m", "scaling", "train", f"--config={plan}", *given]


def plan_folder(folder: epath.Path, name: str, workdir: str) -> epath.Path:
    """The folder of this machine that has the ``plan.json`` of a run: the run directory, unless that is in a store.

    Args:
        folder: of the launch's state.
        name: of the run.
        workdir: its run directory.
    """
    return folder / name if is_remote(workdir) else epath.Path(workdir)


def write_plans(launch: Launch) -> None:
    """Writes the config of each run to the ``plan.json`` in its ``plan_folder``."""
    for run in launch.runs:
        write_plan(run, plan_folder(launch.state_folder, run.name, run.config.workdir))


def refuse_changed(launch: Launch, names: Collection[str]) -> None:
    """Refuses changed knobs of runs whose plan is on other machines, which would use the old knobs.

    Raises:
        ValueError: the plan of one of ``names`` differs from the one that was submitted.
    """
    for run in launch.runs:
        plan = plan_folder(launch.state_folder, run.name, run.config.workdir) / PLAN
        if run.name in names and plan.exists() and plan.read_text() != cfg.to_json(run.config):
            raise ValueError(
                f"{run.name} was submitted with other knobs ({plan}); use the same knobs, or stop it first "
                f"(scaling stop {launch.state_folder})"
            )


def _check_folders(config: cfg.Config, local: bool) -> None:
    """Refuses paths that the machines of the run cannot reach."""
    remote = is_remote(config.workdir)
    if local:
        if remote:
            raise ValueError(
                f"config.workdir={config.workdir}: --target=local keeps its state and logs in the run directory, which "
                "must be a local folder"
            )
        return
    if not remote:
        raise ValueError(
            f"config.workdir={config.workdir} is a folder of this machine; cloud machines need one that all of them "
            "can reach, such as --config.workdir=gs://BUCKET/FOLDER"
        )
    paths = {f"mixture {i}": path for i, (path, _) in enumerate(config.data.mixture)}
    paths |= {"train": config.data.train, "validation": config.data.validation}
    for knob, path in paths.items():
        if path and path != "books" and not is_url(path) and not path.startswith("/"):
            raise ValueError(
                f"config.data.{knob}={path} is a path of this machine; use gs://..., or an absolute path that the "
                "other machines have"
            )
