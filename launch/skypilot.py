"""``--target=skypilot``: a managed job for each run, which SkyPilot places on a cloud and recovers.

https://docs.skypilot.co: a task is the content of SkyPilot's YAML, and ``sky.jobs`` submits it.
"""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from launch import jobs
from launch.bundle import CHECKOUT
from launch.engine import EngineError
from launch.jobs import Launch
from launch.manifest import to_yaml
from launch.slices import Slices
from scaling.runs.paths import PLAN
from scaling.sweep.plan import Run
from scaling.sweep.states import FAILED, FINISHED, RUNNING, STOPPED, WAITING

_PLAN = "~/scaling-plan.json"
_STATES = {
    "PENDING": WAITING,
    "STARTING": WAITING,
    "SUCCEEDED": FINISHED,
    "CANCELLING": STOPPED,
    "CANCELLED": STOPPED,
}
# These contain nothing from a config. They install a Python, because that of the machine is often too old.
_SETUP = """\
set -e
python3 -m pip install --quiet --user uv
python3 -m uv venv --quiet --allow-existing --python=3.12 ~/scaling-venv
python3 -m uv pip install --quiet --python="$HOME/scaling-venv/bin/python" --editable '.[{extra},data]'
"""
_RUN = """\
{join}exec ~/scaling-venv/bin/python -m scaling train --config="$HOME/scaling-plan.json"
"""
_JOIN = """\
export JAX_COORDINATOR_ADDRESS="$(echo "$SKYPILOT_NODE_IPS" | head -n1):8476"
export JAX_NUM_PROCESSES="$SKYPILOT_NUM_NODES"
export JAX_PROCESS_ID="$SKYPILOT_NODE_RANK"
"""


@dataclasses.dataclass(frozen=True)
class Machines:
    """The machines of a run.

    Attributes:
        slices: a TPU slice; None = GPUs.
        accelerators: GPUs of a node, such as ``H100:8``; empty with a slice.
        nodes: number of machines with GPUs.
        infra: ``cloud/region/zone`` or the beginning of it; empty = the cheapest.
        spot: whether machines are preemptible.
        runtime_version: image of TPU VMs.
        max_restarts: limit of restarts after errors of the program; preemptions are not counted.
    """

    slices: Slices | None = None
    accelerators: str = ""
    nodes: int = 1
    infra: str = ""
    spot: bool = False
    runtime_version: str = ""
    max_restarts: int = 5


def task(run: Run, name: str, machines: Machines, plan: str, checkout: Path = CHECKOUT) -> dict[str, Any]:
    """The task of a run, as in SkyPilot's YAML.

    Args:
        run: the run; its name becomes a variable of the environment.
        name: of the managed job.
        machines: the machines of the run.
        plan: path of its ``plan.json`` on this machine.
        checkout: folder of the code; files that .gitignore names are not sent.
    """
    resources: dict[str, Any] = {"infra": machines.infra} if machines.infra else {}
    if machines.slices:
        resources["accelerators"] = f"tpu-{machines.slices.accelerator_type}"
        resources["accelerator_args"] = {"runtime_version": machines.runtime_version}
    else:
        resources["accelerators"] = machines.accelerators
    resources["use_spot"] = machines.spot
    # SkyPilot cannot distinguish a mistake in the config from a crash, so mistakes are refused before submission.
    resources["job_recovery"] = {"strategy": "FAILOVER", "max_restarts_on_errors": machines.max_restarts}
    several = _JOIN if machines.nodes > 1 else ""
    return {
        "name": name,
        "num_nodes": machines.nodes,
        "resources": resources,
        "workdir": str(checkout),
        "file_mounts": {_PLAN: plan},
        "envs": {"SCALING_RUN": run.name},
        "setup": _SETUP.format(extra="tpu" if machines.slices else "gpu"),
        "run": _RUN.format(join=several),
    }


class SkyPilot:
    """The runs of a launch as managed jobs (``launch.engine.Engine``)."""

    together = False

    def __init__(self, launch: Launch | None, machines: Machines, number: str, folder: epath.Path):
        """Args: the launch (None if runs are only observed and stopped), machines, its number, the folder of plans."""
        self._launch, self._machines, self._number, self._folder = launch, machines, number, folder

    def resource(self, run: Run) -> str:
        assert self._launch is not None
        name = f"{self._launch.name}-{run.name}" if self._launch.sweep else self._launch.name
        return f"{jobs.label(name)}-{self._number}"

    def typed(self, runs: Sequence[Run]) -> str:
        """The YAML and the command that start each run."""
        commands = []
        for run in runs:
            name = self.resource(run)
            text = to_yaml([self._task(run, str(self._plan(run)))])
            commands.append(f"cat > {name}.yaml <<'EOF'\n{text}EOF\nsky jobs launch --yes --detach-run {name}.yaml")
        return "\n".join(commands)

    def start(self, runs: Sequence[Run]) -> None:
        sky = _sky()
        for run in runs:
            name = self.resource(run)
            if self.look(name).get("state") in (WAITING, RUNNING, FINISHED):
                continue
            try:
                given = sky.Task.from_yaml_config(self._task(run, str(Path(self._plan(run)).absolute())))
                sky.get(sky.jobs.launch(given, name=name))
            except Exception as error:  # SkyPilot raises whatever its clouds raise
                raise EngineError(_first_line(error)) from error

    def look(self, name: str) -> dict[str, Any]:
        sky = _sky()
        try:
            records = sky.get(sky.jobs.queue(refresh=True))
        except Exception as error:
            if type(error).__name__ == "ClusterNotUpError":  # there is no controller, so there are no jobs
                return {}
            raise EngineError(_first_line(error)) from error
        own = [record for record in records if record["job_name"] == name]
        if not own:
            return {}
        last = max(own, key=lambda record: record["job_id"])
        status = getattr(last["status"], "name", str(last["status"]))
        now = _STATES.get(status, FAILED if status.startswith("FAILED") else RUNNING)
        return {"state": now, "restarts": last["recovery_count"] or 0, "reason": last["failure_reason"] or ""}

    def stop(self, name: str) -> None:
        if self.look(name).get("state") not in (WAITING, RUNNING):
            return
        sky = _sky()
        try:
            sky.get(sky.jobs.cancel(name=name))
        except Exception as error:
            raise EngineError(_first_line(error)) from error

    def logs(self, name: str, since: str) -> tuple[list[str], str]:
        kept = io.StringIO()
        try:
            _sky().jobs.tail_logs(name=name, follow=False, output_stream=kept)
        except Exception as error:
            raise EngineError(_first_line(error)) from error
        lines = kept.getvalue().splitlines()
        return lines[int(since or 0) :], str(max(len(lines), int(since or 0)))

    def _task(self, run: Run, plan: str) -> dict[str, Any]:
        return task(run, self.resource(run), self._machines, plan)

    def _plan(self, run: Run) -> epath.Path:
        return self._folder / run.name / PLAN


def machines_of(cloud: Mapping[str, Any], max_restarts: int) -> Machines:
    """The machines of the state of a launch."""
    topology = cloud["topology"]
    return Machines(
        Slices(topology) if topology else None,
        cloud["accelerators"],
        cloud["nodes"],
        cloud["infra"],
        cloud["spot"],
        cloud["runtime_version"],
        max_restarts,
    )


def _sky() -> Any:
    try:
        import sky
        import sky.jobs
    except ImportError:
        raise ValueError("SkyPilot is not installed; pip install 'scaling[launch]' and 'skypilot[gcp]'") from None
    return sky


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"
