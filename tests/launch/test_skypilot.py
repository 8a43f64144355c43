"""Managed jobs: the task parsed by SkyPilot itself where it is installed, and handed to a stand-in for its API."""

import json
import sys
import types

import pytest
import yaml
from etils import epath

from launch import engine, jobs, skypilot
from launch.manifest import to_yaml
from launch.skypilot import Machines, SkyPilot
from launch.slices import Slices
from tests.experiments import experiment

# The keys that SkyPilot 0.14 knows (sky.utils.schemas).
TASK = {"name", "workdir", "num_nodes", "resources", "file_mounts", "setup", "run", "envs"}
RESOURCES = {"infra", "accelerators", "accelerator_args", "use_spot", "job_recovery"}
TPU = Machines(Slices("v5e:4x4"), spot=True, runtime_version="v2-alpha-tpuv5-lite", max_restarts=3)
GPU = Machines(accelerators="H100:8", nodes=2, infra="aws/us-east-1")


@pytest.fixture
def launch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.py").write_text(experiment("gs://bucket/small", train__batch_tokens=1024, train__tokens=4096))
    return jobs.read("small.py", [], local=False)


@pytest.mark.parametrize("machines", [TPU, GPU])
def test_a_task_has_only_keys_that_skypilot_knows(launch, machines):
    task = skypilot.task(launch.runs[0], "small-1", machines, "/x/plan.json")
    assert set(task) <= TASK and set(task["resources"]) <= RESOURCES
    assert yaml.safe_load(to_yaml([task])) == task
    assert ("JAX_COORDINATOR_ADDRESS" in task["run"]) == (machines.nodes > 1)
    assert task["file_mounts"] == {"~/scaling-plan.json": "/x/plan.json"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("machines", "accelerators", "spot"), [(TPU, {"tpu-v5litepod-16": 1}, True), (GPU, {"H100": 8}, False)]
)
def test_skypilot_parses_a_task(launch, tmp_path, machines, accelerators, spot):
    sky = pytest.importorskip("sky", reason="needs skypilot (extra launch)")
    (tmp_path / "plan.json").write_text("{}")
    task = skypilot.task(launch.runs[0], "small-1", machines, str(tmp_path / "plan.json"))
    parsed = sky.Task.from_yaml_config(yaml.safe_load(to_yaml([task])))
    (resources,) = parsed.resources
    assert resources.accelerators == accelerators and resources.use_spot == spot
    assert parsed.num_nodes == machines.nodes and parsed.name == "small-1"
    assert resources.job_recovery["max_restarts_on_errors"] == machines.max_restarts
    mistyped = yaml.safe_load(to_yaml([task | {"num_node": 1}]))
    with pytest.raises(ValueError, match="num_node"):
        sky.Task.from_yaml_config(mistyped)


@pytest.fixture
def sky(monkeypatch):
    """SkyPilot's API as we use it: each look takes a job one state on."""

    class Task:
        def __init__(self, config):
            self.config = config

        from_yaml_config = classmethod(lambda cls, config: cls(config))

    stand_in = types.ModuleType("sky")
    stand_in.jobs = types.ModuleType("sky.jobs")
    stand_in.Task, stand_in.records, stand_in.faults = Task, [], []
    states = ["PENDING", "STARTING", "RUNNING", "RECOVERING", "RUNNING"]

    def get(request):
        if stand_in.faults and stand_in.faults.pop(0):
            raise RuntimeError("the API server does not answer\nsecond line")
        return request()

    def launch(task, name):
        record = {"job_id": len(stand_in.records) + 1, "job_name": name, "status": "PENDING", "looks": 0}
        record |= {"recovery_count": 0, "failure_reason": None, "task": task.config, "end": "SUCCEEDED"}
        return lambda: stand_in.records.append(record)

    def queue(refresh):
        for one in stand_in.records:
            if one["status"] in states:
                one["looks"] += 1
                one["status"] = ([*states, one["end"]])[min(one["looks"], len(states))]
                one["recovery_count"] = int(one["looks"] > 3)
        return lambda: [dict(one) for one in stand_in.records]

    def cancel(name):
        return lambda: [one.update(status="CANCELLED") for one in stand_in.records if one["job_name"] == name]

    def tail_logs(name, follow, output_stream):
        assert not follow
        looks = max(one["looks"] for one in stand_in.records if one["job_name"] == name)
        output_stream.write("".join(f"step {i}/100\n" for i in range(looks)))

    stand_in.get = get
    stand_in.jobs.launch, stand_in.jobs.queue = launch, queue
    stand_in.jobs.cancel, stand_in.jobs.tail_logs = cancel, tail_logs
    monkeypatch.setitem(sys.modules, "sky", stand_in)
    monkeypatch.setitem(sys.modules, "sky.jobs", stand_in.jobs)
    return stand_in


CLOUD = {"topology": "v5e:4x4", "accelerators": "", "nodes": 1, "infra": "", "spot": True, "runtime_version": "v"}


def start(launch):
    known = json.loads((launch.state_folder / "launch.json").read_text()) if launch.state_folder.exists() else {}
    values = engine.planned(launch, "skypilot", CLOUD, known)
    handler = SkyPilot(launch, skypilot.machines_of(CLOUD, 3), values["id"], epath.Path(launch.state_folder))
    return handler, values


def test_a_run_is_handed_over_once_and_watched_to_its_end(launch, sky, capsys):
    handler, values = start(launch)
    sky.faults[:] = [0, 0, 1, 0, 1]  # looking may fail on the way
    assert engine.run(handler, launch, values, follow=True, poll_seconds=0) == 0
    assert len(sky.records) == 1 and sky.records[0]["task"]["resources"]["use_spot"]
    said = capsys.readouterr().err
    assert "RuntimeError: the API server does not answer" in said and "second line" not in said
    assert said.count("step 1/100") == 1 and "finished" in said
    assert values["jobs"]["small"]["restarts"] == {"total": 1}
    handler, values = start(launch)
    assert engine.run(handler, launch, values, follow=True, poll_seconds=0) == 0
    assert len(sky.records) == 1


def test_a_run_that_fails_is_handed_over_again_by_the_same_command(launch, sky):
    handler, values = start(launch)
    engine.run(handler, launch, values, follow=False, poll_seconds=0)
    sky.records[0] |= {"end": "FAILED", "failure_reason": "user code"}
    handler, values = start(launch)
    assert engine.run(handler, launch, values, follow=True, poll_seconds=0) == 1
    assert values["jobs"]["small"]["reason"] == "user code"
    handler, values = start(launch)
    assert engine.run(handler, launch, values, follow=False, poll_seconds=0) == 0
    assert [one["job_id"] for one in sky.records] == [1, 2]


def test_stop_cancels(launch, sky):
    handler, values = start(launch)
    engine.run(handler, launch, values, follow=False, poll_seconds=0)
    assert engine.stop(handler, launch.state_folder, values) == []
    assert sky.records[0]["status"] == "CANCELLED" and values["jobs"]["small"]["state"] == "stopped"
    handler, values = start(launch)
    engine.run(handler, launch, values, follow=False, poll_seconds=0)
    sky.faults[:] = [1]
    assert engine.stop(handler, launch.state_folder, values) == [values["jobs"]["small"]["resource"]]


def test_without_skypilot_one_sentence_says_what_to_install(launch, monkeypatch):
    monkeypatch.setitem(sys.modules, "sky", None)
    handler, values = start(launch)
    with pytest.raises(ValueError, match=r"SkyPilot.* installed"):
        engine.run(handler, launch, values, follow=False, poll_seconds=0)
