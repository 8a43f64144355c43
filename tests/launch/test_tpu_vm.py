"""Cloud TPU through a stand-in for gcloud that keeps state, fails on request and refuses unknown flags."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.experiments import SHAPES, experiment

ROOT = Path(__file__).resolve().parents[2]
STAND_INS = Path(__file__).with_name("stand_ins")

RUN = experiment("gs://bucket/small", train__batch_tokens=256, train__tokens=1024)
SWEEP = experiment("gs://bucket/small", f"{SHAPES}, [tokens(1024)]", train__batch_tokens=256)
NAMES = ("l1-d8-t1.02k", "l1-d16-t1.02k")


class Cloud:
    """The stand-in and a launcher's command; everything lies in one folder."""

    def __init__(self, folder):
        self.folder, self.stand_in = folder, folder / "cloud"
        self.stand_in.mkdir()
        (folder / "small.py").write_text(RUN)
        (folder / "sweep.py").write_text(SWEEP)
        self.environment = os.environ | {
            "STAND_IN": str(self.stand_in),
            "PATH": f"{STAND_INS}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }
        self.behave()
        self.processes = []

    def behave(self, **runs):
        (self.stand_in / "behaviour.json").write_text(json.dumps({k.replace("_", "-"): v for k, v in runs.items()}))

    def faults(self, **verbs):
        (self.stand_in / "faults.json").write_text(json.dumps(verbs))

    def start(self, *options, config="small.py", verb="launch"):
        usual = ["--target=tpu_vm", f"--config={config}", "--topology=v5e:2x2", "--zone=z", "--yes"]
        usual += ["--poll_seconds=0.02", "--first_delay=0.005", "--grace_seconds=5"]
        command = [sys.executable, "-m", "scaling", verb, *(usual if verb == "launch" else []), *options]
        process = subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=-1, stderr=-1, stdin=subprocess.DEVNULL, text=True
        )
        self.processes.append(process)
        return process

    def run(self, *options, **more):
        process = self.start(*options, **more)
        out, err = process.communicate(timeout=400)
        return process.returncode, out, err

    @property
    def calls(self):
        path = self.stand_in / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def called(self, verb):
        return [call for call in self.calls if call[0] == verb]

    @property
    def left(self):
        """What still exists, and is billed."""
        path = self.stand_in / "resources.json"
        found = json.loads(path.read_text()) if path.exists() else {}
        return [name for name, one in found.items() if one["state"] != "DELETING"]

    def state(self, name="small"):
        return json.loads((self.folder / "runs" / name / "launch.json").read_text())

    def starts(self, run="small", host="0-0"):
        path = self.stand_in / f"starts-{run}-{host}"
        return int(path.read_text()) if path.exists() else 0

    def serving(self):
        """Whether both hosts train."""
        return all((self.stand_in / f"serving-small-0-{host}").exists() for host in (0, 1))

    def until(self, test, seconds=300):
        end = time.monotonic() + seconds
        while not test():
            assert time.monotonic() < end, "it took too long"
            time.sleep(0.01)


@pytest.fixture
def cloud(tmp_path):
    made = Cloud(tmp_path)
    yield made
    for process in made.processes:
        process.kill()
        process.wait()
    for file in made.stand_in.glob("machines/*/*/*/jobs/*/attempt.json"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(json.loads(file.read_text())["pid"], signal.SIGKILL)


@pytest.mark.slow
def test_a_run_from_request_to_deletion(cloud):
    cloud.behave(small=[[7, 0]])
    code, out, err = cloud.run("--labels=team=a", "--spot")
    assert code == 0, err
    assert "1 runs" in out and "chip-hours" in out
    (created,) = cloud.called("create")
    name, flags = created[1:]
    assert name.startswith("small-") and flags["node-id"] == name
    assert flags["accelerator-type"] == "v5litepod-4" and flags["runtime-version"] == "v2-alpha-tpuv5-lite"
    assert "spot" in flags and "team=a" in flags["labels"] and flags["zone"] == "z"
    assert cloud.starts(host="0-0") == cloud.starts(host="0-1") == 1
    assert cloud.left == [] and cloud.state()["state"] == "finished"
    assert "step 7/100" in err
    assert "step 7/100" in (cloud.folder / "runs/small/small/train.log").read_text()
    again, _, _ = cloud.run()
    assert again == 0 and len(cloud.called("create")) == 1  # it is finished


def test_a_dry_run_shows_all_and_calls_nothing(cloud):
    (cloud.folder / "prices.toml").write_text("v5e = 2.0\n[spot]\nv5e = 1.0\n")
    code, out, _ = cloud.run("--dry_run", "--slices=2", "--prices=prices.toml")
    assert code == 0 and cloud.calls == [] and not (cloud.folder / "runs").exists()
    lines = [line.strip() for line in out.splitlines()]
    assert any(line.startswith("gcloud compute tpus queued-resources create small-") for line in lines)
    for part in ("--node-count=2", "--accelerator-type=v5litepod-4", " scp ", "launch/remote.py start", " delete "):
        assert part in out
    assert "at 2 a chip-hour" in out


def test_nothing_is_billed_without_consent(cloud):
    process = subprocess.run(
        [sys.executable, "-m", "scaling", "launch", "--target=tpu_vm", "--config=small.py", "--topology=v5e:2x2",
         "--zone=z"], cwd=cloud.folder, env=cloud.environment, capture_output=True, text=True, input="",
    )  # fmt: skip
    assert process.returncode == 2 and "needs --yes" in process.stderr and "chip-hours" in process.stdout
    assert cloud.calls == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--config.workdir=runs/here",), "gs://BUCKET"),
        (("--config.data.train=corpus/*.txt",), "is a path of this machine"),
        (("--image=x",), "--image belongs to --target=gke"),
        (("--labels=A=b",), "lower-case"),
        (("--labels=a=-b",), "lower-case"),  # Kubernetes refuses it
        (("--labels=a=b,a=c",), "a is given twice"),
        (("--labels=scaling-launch=x",), "scaling-launch is a label that the launcher sets"),
        (("--topology=v7x:2x2x1",), "use --target=gke"),
        (("--config.mesh.fsdp=3",), "config.mesh"),
    ],
)
def test_what_cannot_work_is_refused_before(cloud, options, said):
    code, _, err = cloud.run(*options)
    assert code == 2 and said in err and err.count("\n") == 1
    assert cloud.calls == []


@pytest.mark.slow
def test_preempted_machines_are_replaced_and_the_run_goes_on(cloud):
    cloud.behave(small=[[5, "serve"], [9, 0]])
    process = cloud.start("--spot")
    cloud.until(lambda: cloud.serving() and cloud.state()["slots"][0]["stage"] == "running")
    cloud.faults(describe=["preempt"])
    assert process.wait(400) == 0
    assert cloud.starts() == 2 and len(cloud.called("create")) == 2 and cloud.left == []
    assert cloud.state()["jobs"]["small"]["restarts"]["preemptions"] == 1


@pytest.mark.slow
def test_machines_that_are_lost_in_mid_call_are_replaced(cloud):
    cloud.behave(small=[[5, "serve"], 0])
    process = cloud.start("--spot")
    cloud.until(cloud.serving)
    cloud.faults(ssh=[None, "preempt"])
    assert process.wait(400) == 0
    assert cloud.starts() == 2 and cloud.left == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "faults",
    [
        {"create": ["quota", "quota"]},
        {"create": ["half"], "delete": ["lost", "lost after"]},
        {"create": ["lost"], "scp": ["lost", "lost after"], "list": ["lost"]},
        {"create": ["lost after"], "ssh": ["lost", "lost after", "lost", "lost after", "lost after"]},
        {"describe": ["lost", None, "lost", "lost"]},
    ],
)
def test_passing_faults_are_survived(cloud, faults):
    cloud.faults(**faults)
    code, _, err = cloud.run()
    assert code == 0, err
    assert cloud.starts() == cloud.starts(host="0-1") == 1  # never twice, also where an answer was lost
    assert cloud.left == []


@pytest.mark.slow
def test_lasting_quota_ends_with_its_reason(cloud):
    cloud.faults(create=["quota"] * 50)
    code, _, err = cloud.run("--max_restarts=2")
    assert code == 74 and "exceeded" in err
    assert len(cloud.called("create")) == 3 and cloud.left == []
    assert "no machines" in cloud.state()["jobs"]["small"]["reason"]


def test_a_refusal_ends_at_once(cloud):
    cloud.faults(create=["denied"])
    code, _, err = cloud.run()
    assert code == 2 and "PERMISSION_DENIED" in err and cloud.left == []


@pytest.mark.slow
def test_exit_codes_decide_like_everywhere(cloud):
    (cloud.folder / "runs").mkdir()
    cloud.behave(**{"l1-d8-t1.02k": [3], "l1-d16-t1.02k": [[1, 74], [2, 1], 0]})
    code, _, err = cloud.run("--parallel=2", config="sweep.py")
    assert code == 3, err
    state = cloud.state("sweep")
    assert [state["jobs"][name]["state"] for name in NAMES] == ["failed", "finished"]
    assert cloud.starts(NAMES[0]) == 1 and cloud.starts(NAMES[1]) == 3
    assert len(cloud.called("create")) == 2 and cloud.left == []  # the same machines for all starts
    cloud.behave(**{"l1-d8-t1.02k": [0]})
    code, _, _ = cloud.run(config="sweep.py")  # failed ones get another try, finished ones do not
    assert code == 0 and cloud.starts(NAMES[1]) == 3 and cloud.left == []


@pytest.mark.slow
def test_runs_of_a_sweep_share_machines_one_after_the_other(cloud):
    code, _, err = cloud.run(config="sweep.py")
    assert code == 0, err
    assert len(cloud.called("create")) == 1 and cloud.starts(NAMES[0]) == cloud.starts(NAMES[1]) == 1


@pytest.mark.slow
def test_ctrl_c_lets_the_run_save_and_leaves_nothing(cloud):
    cloud.behave(small=["serve"])
    process = cloud.start()
    cloud.until(cloud.serving)
    process.send_signal(signal.SIGINT)
    assert process.wait(400) == 130
    assert cloud.left == [] and cloud.state()["jobs"]["small"]["state"] == "stopped"


STAGES = ("requested", "preparing", "ready", "running", "deleting")


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_the_launcher_may_be_killed_at_every_stage(cloud, stage):
    """Nothing is made or started twice, and nothing is left."""
    cloud.behave(small=["serve"] if stage == "running" else [[3, 0]])
    first = cloud.start()
    path = cloud.folder / "runs/small/launch.json"
    cloud.until(lambda: path.exists() and cloud.state()["slots"][0]["stage"] == stage)
    if stage == "running":
        cloud.until(cloud.serving)
    first.kill()
    first.wait()
    if stage == "running":
        for host in ("0-0", "0-1"):
            os.kill(int((cloud.stand_in / f"serving-small-{host}").read_text()), signal.SIGKILL)
        cloud.behave(small=["serve", 0])
    code, _, err = cloud.run()
    assert code == 0, err
    assert len(cloud.called("create")) == 1
    assert cloud.starts() == cloud.starts(host="0-1") == (2 if stage == "running" else 1)
    assert cloud.left == []


@pytest.mark.slow
def test_the_launcher_may_be_killed_anywhere(cloud):
    """Killed again and again, each time a little later in its work; then it comes through."""
    cloud.behave(small=[[3, 74], [5, 0]])
    cloud.faults(create=["lost after"], ssh=["lost after"], scp=["lost"])
    path = cloud.folder / "runs/small/launch.json"
    for attempt in range(12):
        process = cloud.start()
        cloud.until(
            lambda process=process: (
                process.poll() is not None or (path.exists() and cloud.state()["launcher"]["pid"] == process.pid)
            )
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.25 * attempt)
        process.kill()
        process.wait()
    code, _, err = cloud.run()
    assert code == 0, err
    assert cloud.left == [] and cloud.starts() == cloud.starts(host="0-1") == 2
    assert cloud.state()["state"] == "finished"
