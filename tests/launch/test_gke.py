"""JobSets: against the published schema, and through a stand-in for kubectl."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launch import gke, jobs
from launch.slices import Slices
from tests.experiments import SHAPES, experiment
from tests.shared import SHARED, needs_shared

ROOT = Path(__file__).resolve().parents[2]
STAND_INS = Path(__file__).with_name("stand_ins")
CRD = "jobset/jobset.x-k8s.io_jobsets.yaml"  # config/components/crd/bases of kubernetes-sigs/jobset, Apache-2.0

CONFIG = experiment("gs://bucket/small", train__batch_tokens=1024, train__tokens=4096)
SWEEP = experiment("gs://bucket/small", f"{SHAPES}, [tokens(4096)]", train__batch_tokens=1024)


@pytest.fixture
def launch(tmp_path):
    (tmp_path / "small.py").write_text(CONFIG)
    return jobs.read(str(tmp_path / "small.py"), [], local=False)


def cluster(topology="v5e:4x4", count=1, **more):
    return gke.Cluster(image="registry/scaling:1", slices=Slices(topology, count), **more)


EVERYTHING = dict(
    namespace="team", queue="tpus", spot=True, reservation="r-1", service_account="trainer", labels={"team": "a"}
)
CLUSTERS = [cluster(), cluster("v5p:4x4x4", 2, **EVERYTHING), cluster("v5e:2x4"), cluster("v7x:2x2x1", 4)]


@pytest.mark.slow  # a thousand models are imported
@pytest.mark.parametrize("given", CLUSTERS)
def test_manifests_hold_to_the_published_models(launch, given):
    """Every field is one of the API's, of its type: reading and writing it by the models changes nothing."""
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="needs kubeflow-trainer-api (extra dev)")
    config_map, job_set = gke.manifests(launch, launch.runs[0], given, "abc123")
    model = models.JobsetV1alpha2JobSet
    assert model.from_dict(copy.deepcopy(job_set)).to_dict() == job_set
    broken = copy.deepcopy(job_set)
    broken["spec"]["replicatedJobs"][0]["template"]["spec"]["paralelism"] = 1
    assert model.from_dict(copy.deepcopy(broken)).to_dict() != broken  # so a mistyped field would show
    broken["spec"]["replicatedJobs"][0]["replicas"] = "two"
    with pytest.raises(ValueError, match="replicas"):
        model.from_dict(broken)
    assert config_map["kind"] == "ConfigMap" and json.loads(config_map["data"]["plan.json"])["model"]["d_model"] == 8


def strict(schema):
    """A structural schema that refuses unknown fields, as `kubectl apply` with strict validation does."""
    if isinstance(schema, dict):
        if schema.get("type") == "object" and "properties" in schema:
            schema.setdefault("additionalProperties", False)
        if schema.get("x-kubernetes-int-or-string"):
            schema.pop("type", None)
        for value in schema.values():
            strict(value)
    return schema


@needs_shared(CRD)
@pytest.mark.parametrize("given", CLUSTERS)
def test_manifests_hold_to_the_definition_of_the_resource(launch, given):
    """The CRD itself; its limits (maxLength, enum, patterns) are checked too."""
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema (extra dev)")
    definitions = [d for d in yaml.load_all((SHARED / CRD).read_text(), Loader=yaml.CSafeLoader) if d]
    version = next(v for v in definitions[0]["spec"]["versions"] if v["name"] == "v1alpha2")
    validator = jsonschema.Draft202012Validator(strict(version["schema"]["openAPIV3Schema"]))
    job_set = gke.manifests(launch, launch.runs[0], given, "abc123")[1]
    metadata = job_set.pop("metadata")  # the API server's own, empty in the definition
    assert metadata["name"]
    assert not [error.message for error in validator.iter_errors(job_set)]
    job_set["spec"]["failurePolicy"]["maxRestart"] = 1
    assert list(validator.iter_errors(job_set))


def test_a_jobset_has_a_job_a_slice_and_a_pod_a_host(launch):
    given = cluster("v5p:4x4x4", 2, queue="tpus", spot=True, max_restarts=7)
    job_set = gke.manifests(launch, launch.runs[0], given, "abc123")[1]
    (replicated,) = job_set["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    assert replicated["replicas"] == 2
    assert job["parallelism"] == job["completions"] == 16 and job["backoffLimit"] == 0
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == "tpu-v5p-slice"
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4x4"
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert job_set["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "tpus"
    assert job_set["spec"]["failurePolicy"]["maxRestarts"] == 7
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2, 3]
    assert pod["containers"][0]["command"][-1] == "--config=/etc/scaling/plan.json"
    assert "env" not in pod["containers"][0]  # nothing of our environment gets into a manifest


@pytest.mark.parametrize(
    ("topology", "hosts", "each"),
    [("v5e:1x1", 1, 1), ("v5e:2x2", 1, 4), ("v5e:2x4", 1, 8), ("v5e:4x4", 4, 4), ("v6e:16x16", 64, 4),
     ("v4:2x2x4", 4, 4), ("v5p:2x2x1", 1, 4), ("v7x:2x2x2", 2, 4)],
)  # fmt: skip
def test_hosts_of_slices(topology, hosts, each):
    slices = Slices(topology)
    assert (slices.hosts, slices.chips_per_host) == (hosts, each)
    assert slices.hosts * slices.chips_per_host == slices.chips


@pytest.mark.parametrize(
    ("topology", "name", "flags"),
    [
        ("v5e:4x8", "v5litepod-32", ["--accelerator-type=v5litepod-32"]),
        ("v6e:2x4", "v6e-8", ["--accelerator-type=v6e-8"]),
        ("v5p:4x4x8", "v5p-256", ["--type=v5p", "--topology=4x4x8"]),
        ("v4:2x2x1", "v4-8", ["--type=v4", "--topology=2x2x1"]),
    ],
)
def test_names_of_cloud_tpu(topology, name, flags):
    assert Slices(topology).accelerator_type == name and Slices(topology).flags == flags


@pytest.fixture
def command(tmp_path):
    """Runs a verb on the stand-in; returns (code, out, err)."""
    (tmp_path / "small.py").write_text(CONFIG)
    (tmp_path / "sweep.py").write_text(SWEEP)
    (tmp_path / "cluster").mkdir()
    path = f"{STAND_INS}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"STAND_IN": str(tmp_path / "cluster"), "PATH": path, "PYTHONPATH": str(ROOT)}

    def run(verb, *options):
        usual = ["--target=gke", "--topology=v5e:4x4", "--image=i", "--yes", "--poll_seconds=0.02"]
        given = [sys.executable, "-m", "scaling", verb, *(usual if verb == "launch" else []), *options]
        found = subprocess.run(given, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400)
        return found.returncode, found.stdout, found.stderr

    run.folder, run.cluster = tmp_path, tmp_path / "cluster"
    run.objects = lambda: json.loads((tmp_path / "cluster/objects.json").read_text())
    return run


@pytest.mark.slow
def test_a_sweep_is_handed_over_watched_and_stopped(command):
    code, out, err = command("launch", "--config=sweep.py", "--queue=q")
    assert code == 0, err
    assert "2 runs" in out and "chip-hours" in out
    assert {key.split("/")[0] for key in command.objects()} == {"configmap", "jobset"} and len(command.objects()) == 4
    assert "step 2/100" in err and err.count("step 2/100") == 2  # each line once, of each run
    code, out, err = command("status", "sweep", "--json")
    assert code == 0, err
    rows = json.loads(out)
    assert [row["state"] for row in rows] == ["finished"] * 2 and [row["restarts"] for row in rows] == [1, 1]
    assert rows[0]["steps"] == 4 and rows[0]["loss"] is None  # the bucket cannot be read from here
    code, out, _ = command("stop", "sweep")
    assert code == 0 and command.objects() == {}


@pytest.mark.slow
def test_a_failed_run_tells_why_and_gets_another_try(command):
    (command.cluster / "ends.json").write_text(json.dumps({"small": "jobset failed due to exit code 3"}))
    code, _, err = command("launch", "--config=small.py")
    assert code == 1 and "exit code 3" in err
    (command.cluster / "ends.json").unlink()
    code, _, err = command("launch", "--config=small.py")
    assert code == 0, err


@pytest.mark.slow
def test_lost_connections_do_no_harm_and_refusals_end(command):
    faults = command.cluster / "faults.json"
    faults.write_text(json.dumps({"get": [None, "lost", "lost"], "logs": ["lost"]}))
    assert command("launch", "--config=small.py")[0] == 0
    faults.write_text(json.dumps({"apply": ["denied"]}))
    code, _, err = command("launch", "--config=sweep.py", "--detach")
    assert code == 2 and "forbidden" in err
    code, _, _ = command("launch", "--config=sweep.py", "--detach")  # again, without waiting
    assert code == 0


def test_another_launch_of_the_same_name_is_not_touched(command):
    assert command("launch", "--config=small.py", "--detach")[0] == 0
    (command.folder / "runs/small/launch.json").unlink()  # as from another machine
    code, _, err = command("launch", "--config=small.py", "--detach")
    assert code == 2 and "this launch did not make" in err


def test_a_dry_run_prints_what_would_be_applied(command):
    label = "commit=1234e56"  # a number for kubectl, without quotes
    code, out, _ = command(
        "launch", "--config=small.py", "--dry_run", "--namespace=team", "--context=c", f"--labels={label}"
    )
    assert code == 0 and not (command.cluster / "calls.jsonl").exists()
    text = out.partition("<<'EOF'\n")[2].partition("EOF")[0]
    assert text.count('commit: "1234e56"') == 3  # the ConfigMap, the JobSet, its pods
    kinds = [document["kind"] for document in yaml.safe_load_all(text)]
    assert kinds == ["ConfigMap", "JobSet"] and "kubectl --context=c --namespace=team apply --filename=-" in out
    assert command("launch", "--config=small.py", "--parallel=2")[0] == 2
