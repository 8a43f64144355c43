"""``--target=gke``: a JobSet for each run, with its config in a ConfigMap, applied and watched through ``kubectl``.

JobSet (jobset.x-k8s.io/v1alpha2) makes a Job of every slice and restarts all of them when one fails. If there is a
queue, Kueue decides when a run starts. GKE gives each pod the addresses of the other pods of its slice
(``TPU_WORKER_HOSTNAMES``) and of other slices (``MEGASCALE_*``); JAX joins the processes with these.
"""

import dataclasses
import json
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from launch import jobs
from launch.engine import EngineError
from launch.jobs import Launch
from launch.manifest import to_yaml
from launch.slices import Slices
from scaling import exit_codes
from scaling.config import schema as cfg
from scaling.sweep.plan import Run
from scaling.sweep.states import FAILED, FINISHED, RUNNING, WAITING

_PLAN = "/etc/scaling/plan.json"
_CONTAINER = "train"
_PORTS = (8471, 8080)  # libtpu between the hosts of a slice; the coordinator between slices


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Where and how the pods of runs are created.

    Attributes:
        image: container image in which this package is installed.
        slices: TPU slices of one run.
        namespace: Kubernetes namespace of everything that is created.
        queue: LocalQueue of Kueue; empty = none.
        context: context of kubectl's config; empty = the current one.
        spot: whether nodes are preemptible.
        reservation: reservation of Compute Engine; empty = none.
        service_account: service account of Kubernetes; empty = that of the namespace.
        labels: labels of everything that is created.
        max_restarts: limit of restarts of a run, for any reason.
        grace_seconds: time that a pod has for saving when it is told to end.
    """

    image: str
    slices: Slices
    namespace: str = "default"
    queue: str = ""
    context: str = ""
    spot: bool = False
    reservation: str = ""
    service_account: str = ""
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    max_restarts: int = 100
    grace_seconds: float = 60.0

    def command(self, *arguments: str) -> list[str]:
        context = [f"--context={self.context}"] if self.context else []
        return ["kubectl", *context, f"--namespace={self.namespace}", *arguments]

    def apply(self) -> list[str]:
        return self.command("apply", "--filename=-")

    def get(self, name: str) -> list[str]:
        return self.command("get", "jobsets.jobset.x-k8s.io", name, "--output=json", "--ignore-not-found")

    def delete(self, name: str) -> list[str]:
        return self.command("delete", f"jobsets.jobset.x-k8s.io/{name}", f"configmap/{name}", "--ignore-not-found")

    def logs(self, name: str, since: str = "") -> list[str]:
        """Arguments that print the lines of the first process of a run, each with its time."""
        first = "jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
        selector = f"--selector=jobset.sigs.k8s.io/jobset-name={name},{first}"
        begin = [f"--since-time={since}"] if since else []
        return self.command("logs", selector, f"--container={_CONTAINER}", "--timestamps", "--tail=-1", *begin)


def cluster_of(cloud: Mapping[str, Any], max_restarts: int, grace_seconds: float) -> Cluster:
    """The cluster of the state of a launch."""
    given = {key: value for key, value in cloud.items() if key not in ("topology", "slices")}
    slices = Slices(cloud["topology"], cloud["slices"])
    return Cluster(slices=slices, max_restarts=max_restarts, grace_seconds=grace_seconds, **given)


def resource(launch: Launch, run: Run) -> str:
    """Name of the JobSet and the ConfigMap of a run."""
    return jobs.label(f"{launch.name}-{run.name}" if launch.sweep else launch.name)


def manifests(launch: Launch, run: Run, cluster: Cluster, number: str) -> list[dict[str, Any]]:
    """ConfigMap and JobSet of a run; a label contains ``number``, that of the launch."""
    name, slices = resource(launch, run), cluster.slices
    labels = {**cluster.labels, jobs.LABEL: number}
    selector = {
        "cloud.google.com/gke-tpu-accelerator": slices.gke_accelerator,
        "cloud.google.com/gke-tpu-topology": slices.form,
    }
    selector |= {"cloud.google.com/gke-spot": "true"} if cluster.spot else {}
    selector |= {"cloud.google.com/reservation-name": cluster.reservation} if cluster.reservation else {}
    chips = {"google.com/tpu": slices.chips_per_host}
    container = {
        "name": _CONTAINER,
        "image": cluster.image,
        "command": jobs.command(_PLAN, python="python3"),
        "ports": [{"containerPort": port, "protocol": "TCP"} for port in _PORTS],
        "resources": {"requests": chips, "limits": chips},
        "volumeMounts": [{"name": "plan", "mountPath": _PLAN.rpartition("/")[0], "readOnly": True}],
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": int(cluster.grace_seconds),
        "nodeSelector": selector,
        "containers": [container],
        "volumes": [{"name": "plan", "configMap": {"name": name}}],
    }
    if slices.count > 1:  # faster between slices; Autopilot clusters do not allow it
        pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    if cluster.service_account:
        pod["serviceAccountName"] = cluster.service_account
    # A mistake in the config or a diverged loss would happen again, so they end the run. All else restarts the run.
    final = {"containerName": _CONTAINER, "operator": "In", "values": [exit_codes.USAGE, exit_codes.DIVERGED]}
    job = {
        "parallelism": slices.hosts,
        "completions": slices.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": final}]},
        "template": {"metadata": {"labels": dict(labels)}, "spec": pod},
    }
    job_set = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": name,
            "namespace": cluster.namespace,
            "labels": labels | ({"kueue.x-k8s.io/queue-name": cluster.queue} if cluster.queue else {}),
            # Each Job gets a slice of its own: pods of two Jobs must not share the nodes of one slice.
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": cluster.max_restarts,
                "rules": [{"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
            },
            "replicatedJobs": [{"name": "slice", "replicas": slices.count, "template": {"spec": job}}],
        },
    }
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": cluster.namespace, "labels": dict(labels)},
        "data": {"plan.json": cfg.to_json(run.config)},
    }
    return [config_map, job_set]


def call(arguments: Sequence[str], given: str = "") -> str:
    """Runs kubectl and returns what it prints.

    Raises:
        EngineError: the call failed.
        ValueError: kubectl is not installed.
    """
    try:
        found = subprocess.run(
            arguments, input=given, capture_output=True, text=True, timeout=120, start_new_session=True
        )
    except FileNotFoundError:
        raise ValueError("kubectl is not installed; see https://kubernetes.io/docs/tasks/tools") from None
    except subprocess.TimeoutExpired:
        raise EngineError("no answer in 120 s") from None
    if found.returncode:
        text = found.stderr.strip() or f"exit code {found.returncode}"
        raise EngineError(text.splitlines()[-1][:400])
    return found.stdout


def look(cluster: Cluster, name: str) -> dict[str, Any]:
    """A JobSet's ``state``, ``restarts``, ``reason`` and the ``number`` of its launch; empty if there is no JobSet.

    Raises:
        EngineError: kubectl failed.
    """
    text = call(cluster.get(name))
    if not text.strip():
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise EngineError(f"kubectl's answer is not JSON: {error}") from None
    status = found.get("status", {})
    conditions = {one["type"]: one for one in status.get("conditions", []) if one.get("status") == "True"}
    now, reason = RUNNING, ""
    if "Completed" in conditions:
        now = FINISHED
    elif "Failed" in conditions:
        now, reason = FAILED, conditions["Failed"].get("message", "")
    elif "Suspended" in conditions or not any(one.get("active") for one in status.get("replicatedJobsStatus", [])):
        now = WAITING  # for Kueue, or for nodes
    number = found["metadata"].get("labels", {}).get(jobs.LABEL, "")
    return {"state": now, "restarts": status.get("restarts", 0), "reason": reason, "number": number}


class Gke:
    """The runs of a launch in a cluster (``launch.engine.Engine``)."""

    together = False

    def __init__(self, launch: Launch | None, cluster: Cluster, number: str):
        """Args: the launch (None if runs are only observed and stopped), the cluster, and the number of the launch."""
        self._launch, self._cluster, self._number = launch, cluster, number

    def typed(self, runs: Sequence[Run]) -> str:
        """The command and the manifests that start each run."""
        return "\n".join(f"{shlex.join(self._cluster.apply())} <<'EOF'\n{self._yaml(run)}EOF" for run in runs)

    def start(self, runs: Sequence[Run]) -> None:
        for run in runs:
            found = self._own(run)
            if found.get("state") == FAILED:  # it failed, and is tried again
                call(self._cluster.delete(self.resource(run)))
            elif found:
                continue
            call(self._cluster.apply(), self._yaml(run))

    def look(self, name: str) -> dict[str, Any]:
        return look(self._cluster, name)

    def stop(self, name: str) -> None:
        call(self._cluster.delete(name))

    def logs(self, name: str, since: str) -> tuple[list[str], str]:
        lines = []
        for line in call(self._cluster.logs(name, since)).splitlines():
            when, _, text = line.partition(" ")
            if when > since:  # --since-time has a resolution of one second
                lines.append((when, text))
        return [text for _, text in lines], max([since, *(when for when, _ in lines)])

    def resource(self, run: Run) -> str:
        assert self._launch is not None
        return resource(self._launch, run)

    def _own(self, run: Run) -> dict[str, Any]:
        found = look(self._cluster, self.resource(run))
        if found and found["number"] != self._number:
            raise ValueError(
                f"the cluster has a JobSet {self.resource(run)} that this launch did not make; delete it, or "
                "give the config file another name"
            )
        return found

    def _yaml(self, run: Run) -> str:
        assert self._launch is not None
        return to_yaml(manifests(self._launch, run, self._cluster, self._number))
