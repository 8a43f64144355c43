"""Jobs of Slurm without a Slurm: arguments, the script, what squeue says; test_real_slurm.py has the rest."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import engine, jobs, slurm, slurm_end, slurm_job, slurm_state
from launch.engine import EngineError
from launch.slurm_job import Cluster
from scaling import cli
from tests.experiments import SHAPES, experiment

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def launch(tmp_path):
    text = experiment(tmp_path / "sweep", f"{SHAPES}, [tokens(4096, 8192)]", train__batch_tokens=128)
    (tmp_path / "sweep.py").write_text(text)
    return jobs.read(str(tmp_path / "sweep.py"), [], local=None)


class Fake:
    """Answers the calls of Slurm's commands; ``jobs`` is index -> [job, state, reason, restarts]."""

    def __init__(self):
        self.jobs, self.calls, self.refuses, self.accounts = {}, [], "", ""

    def __call__(self, arguments, given=""):
        self.calls.append(list(arguments))
        return getattr(self, arguments[0])(arguments, given)

    def sbatch(self, arguments, given):
        if self.refuses:
            raise EngineError(f"sbatch: {self.refuses}")
        if "--test-only" in arguments:
            return ""
        array = next((a.partition("=")[2] for a in arguments if a.startswith("--array=")), "0")
        number = 1 + max([job[0] for job in self.jobs.values()], default=0)
        for index in array.partition("%")[0].split(","):
            self.jobs[int(index)] = [number, "PENDING", "Priority", 0]
        return f"{number}\n"

    def squeue(self, arguments, given):
        several = len(self.jobs) > 1
        rows = ((i, *job) for i, job in self.jobs.items())
        return "".join(f"{n} {i if several else 'N/A'} {n} {s} {r} {why}\n" for i, n, s, why, r in rows)

    def scancel(self, arguments, given):
        if "--batch" in arguments:  # the script saves and ends
            for job in self.jobs.values():
                job[1] = "FAILED" if job[1] == "RUNNING" else job[1]
        for name in arguments[1:]:
            if "_" in name:
                self.jobs[int(name.partition("_")[2])][1] = "CANCELLED"
        return ""

    def scontrol(self, arguments, given):
        return ""

    def sacct(self, arguments, given):
        if not self.accounts:
            raise EngineError("sacct: Slurm accounting storage is disabled")
        return self.accounts


@pytest.fixture
def fake(monkeypatch):
    found = Fake()
    monkeypatch.setattr(slurm, "call", found)
    monkeypatch.setattr(slurm_state, "call", found)
    monkeypatch.setattr(slurm, "_ASK_SECONDS", 0)
    monkeypatch.setattr(slurm, "_LOOK_SECONDS", 0)
    return found


def handler_of(launch, **cluster):
    values = engine.planned(launch, "slurm", cluster, {})
    return values, slurm.Slurm(Cluster(**cluster), values, Path(launch.state_folder), 0.1)


def test_options_become_arguments():
    cluster = Cluster(
        "a,b", "team", "normal", "1-12", 2, "h100:8", "gpu", 12, "ib&h100", parallel=3, sbatch=["--exclusive"]
    )
    assert cluster.processes == 16 and cluster.devices(0) == 16
    assert cluster.submission("name", [1, 4], "log") == [
        "sbatch",
        "--exclusive",  # first, so that ours win
        "--parsable",
        "--job-name=name",
        "--signal=B:TERM@120",
        "--requeue",
        "--partition=a,b",
        "--account=team",
        "--qos=normal",
        "--time=1-12",
        "--nodes=2",
        "--gpus-per-node=h100:8",
        "--ntasks-per-node=8",
        "--cpus-per-task=12",
        "--constraint=ib&h100",
        "--array=1,4%3",
        "--open-mode=append",
        "--output=log",
    ]
    assert not [one for one in Cluster().submission("name", None, "log") if one.startswith(("--array", "--time"))]


def test_containers(monkeypatch):
    here = str(Path.cwd())
    step = Cluster(image="registry/scaling:1", mounts=["/data"], cpus=2).step(["/runs"], ["--wait=60"], ["-m", "x"])
    assert step == [
        "srun",
        "--cpus-per-task=2",
        "--wait=60",
        "--container-image=registry/scaling:1",
        f"--container-mounts={here}:{here},/runs:/runs,/data:/data",
        f"--container-workdir={here}",
        "python3",
        "-m",
        "x",
    ]
    step = Cluster(image="scaling.sif", container="apptainer", gpus="4").step(["/runs"], [], ["-m", "x"])
    inside = ["apptainer", "exec", "--nv", f"--bind={here},/runs", f"--pwd={here}", "scaling.sif"]
    assert step == ["srun", *inside, "python3", "-m", "x"]


def test_a_process_for_each_node_gets_all_its_gpus():
    plans = {0: Path("/runs/a b")}
    both = [slurm_job.script(Cluster(nodes=2, gpus="4", tasks=tasks), plans, []) for tasks in slurm_job.TASKS]
    assert "export JAX_LOCAL_DEVICE_IDS=0,1,2,3" in both[0] and "JAX_LOCAL_DEVICE_IDS" not in both[1]
    assert all("[0]='/runs/a b/plan.json'" in text and "JAX_COORDINATOR_ADDRESS=" in text for text in both)
    assert "JAX_COORDINATOR_ADDRESS=" not in slurm_job.script(Cluster(), plans, [])
    for text in both:
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [("90", 5400), ("1:30", 90), ("2:00:01", 7201), ("1-12", 129600), ("1-0:5", 86700), ("1-0:0:7", 86407),
     ("UNLIMITED", 0)],
)  # fmt: skip
def test_time_limits(limit, seconds):
    assert slurm_job.seconds_of(limit) == seconds


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (dict(time="tomorrow"), "--time=tomorrow must be MINUTES"),
        (dict(time="1:2:3:4"), "must be MINUTES"),
        (dict(time="2"), "--time=2 must be longer than --signal_seconds=120"),
        (dict(gpus="many"), "--gpus=many must be the number"),
        (dict(gpus="h100:0"), "must be the number"),
        (dict(tasks="gpu"), "--tasks=gpu needs --gpus"),
        (dict(sbatch=["script.sh"]), "must be an option of sbatch"),
        (dict(mounts=["/data"]), "--mounts belongs to --image"),
        (dict(cpus=-1), "--cpus must not be negative"),
    ],
)
def test_impossible_options(given, said):
    with pytest.raises(ValueError, match=said):
        Cluster(**given)


def test_an_array_is_submitted_once_and_failed_tasks_again(launch, fake):
    values, handler = handler_of(launch, parallel=2)
    submitted = lambda: [c for c in fake.calls if c[0] == "sbatch"]  # noqa: E731
    assert engine.run(handler, launch, values, False, 0) == 0
    assert engine.run(handler, launch, values, False, 0) == 0  # as a launcher that was killed after sbatch
    assert len(submitted()) == 1 and "--array=0,1,2,3%2" in submitted()[0]
    names = [job["resource"] for job in values["jobs"].values()]
    assert names == [f"sweep-{values['id']}_{i}" for i in range(4)]
    for index, state in enumerate(("COMPLETED", "RUNNING", "FAILED", "CANCELLED")):
        fake.jobs[index][1] = state
    assert [handler.look(name)["state"] for name in names] == ["finished", "running", "failed", "stopped"]
    assert handler.look(names[2])["reason"] == "Slurm says FAILED of job 1_2"
    engine.run(handler, launch, values, False, 0)
    assert "--array=2,3%2" in submitted()[1] and fake.jobs[2][0] == 2


def test_a_sweep_with_more_runs_keeps_the_numbers_of_the_old_ones(launch, fake, tmp_path):
    values, handler = handler_of(launch)
    engine.run(handler, launch, values, False, 0)
    old = {name: job["resource"] for name, job in values["jobs"].items()}
    text = experiment(tmp_path / "sweep", f"{SHAPES}, [tokens(2048, 4096, 8192)]", train__batch_tokens=128)
    (tmp_path / "sweep.py").write_text(text)
    more = jobs.read(str(tmp_path / "sweep.py"), [], local=None)
    new = engine.planned(more, "slurm", {}, values)
    later = slurm.Slurm(Cluster(), new, Path(more.state_folder))
    names = [later.resource(run) for run in more.runs]
    assert len(set(names)) == 6 and set(old.values()) < set(names)
    assert {run.name: later.resource(run) for run in more.runs if run.name in old} == old


def test_states_come_from_the_queue_then_from_the_run_then_from_the_accounts(launch, fake):
    values, handler = handler_of(launch)
    engine.run(handler, launch, values, False, 0)
    names = [handler.resource(run) for run in launch.runs]
    assert handler.look(names[0]) == {"state": "waiting", "restarts": 0, "reason": "Priority"}
    fake.jobs[0] = [1, "RUNNING", "None", 2]
    for folder, what, code in ((launch.runs[0], "again", 1), (launch.runs[1], "fail", 3)):
        end = {"what": what, "code": code, "reason": "exit code 3, the loss diverged", "in_place": 1}
        Path(folder.config.workdir, slurm_end.END).write_text(json.dumps(end))
    assert handler.look(names[0]) == {"state": "running", "restarts": 3, "reason": ""}
    fake.jobs.clear()
    assert handler.look(names[1])["reason"] == "exit code 3, the loss diverged"
    assert handler.look(names[2]) == {}
    fake.accounts = "1_2|3|TIMEOUT\n1_3|1|CANCELLED by 0\n1_[4-7]|1|PENDING\n"
    assert handler.look(names[2])["reason"] == "Slurm says TIMEOUT of job 1_2"
    assert handler.look(names[3])["state"] == "stopped"
    slurm.refresh(values, Path(launch.state_folder))
    assert [job["state"] for job in values["jobs"].values()] == ["gone", "failed", "failed", "stopped"]


def test_stop_cancels_what_waits_before_it_signals_what_runs(launch, fake):
    values, handler = handler_of(launch, parallel=1)
    engine.run(handler, launch, values, False, 0)
    fake.jobs[0][1] = "RUNNING"
    fake.calls.clear()
    assert engine.stop(handler, launch.state_folder, values) == []
    told = [call for call in fake.calls if call[0] != "squeue"]
    assert told == [
        ["scancel", "1_1", "1_2", "1_3"],
        ["scontrol", "update", "JobId=1", "Requeue=0"],
        ["scancel", "--signal=TERM", "--batch", "1"],
    ]
    assert {job["state"] for job in values["jobs"].values()} == {"stopped"}


# srun: what each start does is in $STAND_IN/behaviour, a line each: an exit code, or "serve" until SIGUSR1.
SRUN = """#!{python} -S
import os, signal, sys, time
from pathlib import Path
root = Path(os.environ["STAND_IN"])
if "launch.slurm_end" in sys.argv:
    program = sys.argv[sys.argv.index("-m"):]
    os.execv({python!r}, [{python!r}, *program])
count = root / "starts"
number = int(count.read_text()) if count.exists() else 0
count.write_text(str(number + 1))
what = (root / "behaviour").read_text().split()[number]
def end(*_):
    (root / "told").touch()
    time.sleep(0.3)
    sys.exit(138)
if what == "serve":
    signal.signal(signal.SIGUSR1, end)
    (root / "serving").touch()
    time.sleep(60)
for code in what.split(","):
    print(f"srun: error: n1: task 0: Exited with exit code {{code}}", file=sys.stderr)
sys.exit(max(map(int, what.split(","))))
"""


@pytest.fixture
def script(tmp_path, launch):
    """Runs the script of a job with stand-ins for Slurm's commands; returns (code, log, calls of scontrol)."""
    run = launch.runs[0]
    tools = {"srun": SRUN.format(python=sys.executable), "squeue": '#!/bin/sh\ncat "$STAND_IN/state"\n'}
    tools["scontrol"] = '#!/bin/sh\necho "$@" >> "$STAND_IN/scontrol"\n[ ! -e "$STAND_IN/refuses" ]\n'
    tools["sleep"] = "#!/bin/sh\n"  # neither delays nor the wait for Slurm
    (tmp_path / "bin").mkdir()
    for name, text in tools.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "state").write_text("RUNNING")
    jobs.write_plans(launch)
    given = os.environ | {"STAND_IN": str(tmp_path), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    given |= {"PYTHONPATH": str(ROOT), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_ARRAY_TASK_ID": "3"}
    text = slurm_job.script(Cluster(max_restarts=2), {3: Path(run.config.workdir)}, [])

    def started(behaviour, signalled=False):
        (tmp_path / "behaviour").write_text(behaviour)
        process = subprocess.Popen(["bash", "-c", text], env=given, cwd=tmp_path)
        if signalled:
            until = time.monotonic() + 60
            while not (tmp_path / "serving").exists() and time.monotonic() < until:
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
        code = process.wait(60)
        calls = tmp_path / "scontrol"
        log = Path(run.config.workdir, "train.log").read_text()
        return code, log, calls.read_text().splitlines() if calls.exists() else []

    started.folder, started.run_dir = tmp_path, Path(run.config.workdir)
    return started


def test_a_crash_is_started_again_in_the_same_job_and_a_mistake_is_not(script):
    code, log, calls = script("75 0")
    assert (code, calls) == (0, []) and log.count("launch: job 7") == 2 and "launch: finished" in log
    assert slurm_end.read(script.run_dir)["in_place"] == 1
    (script.folder / "starts").unlink()
    (script.run_dir / slurm_end.END).unlink()
    code, log, calls = script("2,75")  # one process found a mistake, and the other missed it
    assert (code, calls) == (75, []) and log.count("launch: job 7") == 3
    assert slurm_end.read(script.run_dir)["reason"] == "exit code 2, a mistake in the config"
    (script.folder / "starts").unlink()
    (script.run_dir / slurm_end.END).unlink()
    code, log, calls = script("76 76")  # the second time perhaps on other nodes
    assert (code, calls) == (0, ["requeue 7"])
    (script.folder / "starts").unlink()
    code, log, calls = script("76")
    assert (code, calls) == (76, ["requeue 7"]) and "after 2 more starts without progress" in log


@pytest.mark.parametrize(
    ("state", "refuses", "code", "requeued"),
    [("RUNNING", False, 0, True), ("RUNNING", True, 138, True), ("COMPLETING", False, 138, False)],
)
def test_a_signalled_job_saves_and_goes_back_into_the_queue(script, state, refuses, code, requeued):
    """Unless Slurm refuses that, or someone cancels it."""
    (script.folder / "state").write_text(state)
    if refuses:
        (script.folder / "refuses").touch()
    found, _, calls = script("serve", signalled=True)
    assert (script.folder / "told").exists() and slurm_end.read(script.run_dir)["code"] == 138
    assert (found, calls) == (code, ["requeue 7"] if requeued else [])


def test_a_dry_run_prints_command_and_script(launch, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # without Slurm
    given = ["launch", "--target=slurm", f"--config={tmp_path / 'sweep.py'}", "--nodes=2", "--parallel=2"]
    assert cli.main([*given, "--dry_run"]) == 0
    out = capsys.readouterr().out
    command = shlex.split(out.partition("would run:\n")[2].splitlines()[0].removesuffix(" <<'EOF'"))
    assert command[0] == "sbatch" and "--array=0,1,2,3%2" in command and "--nodes=2" in command
    assert "4 runs, 2 at a time, each on 2 nodes, 2 processes" in out and "scontrol requeue" in out
    assert not (tmp_path / "sweep").exists()
    assert cli.main(given) == 2
    assert "sbatch is not installed; launch from a login node of a Slurm cluster" in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--zone=z"], "--zone belongs to --target=tpu_vm, not to slurm"),
        (["--nodes=3"], "l1-d8-t4.1k on 3 nodes, 3 processes: config.train.batch_tokens"),
        (["--parallel=-1"], "--parallel must not be negative"),
        (["--nodes=0"], "--nodes=0 must be at least 1"),
    ],
)
def test_options_that_cannot_be(launch, tmp_path, capsys, options, said):
    assert cli.main(["launch", "--target=slurm", f"--config={tmp_path / 'sweep.py'}", *options]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "sweep").exists()


def test_what_slurm_says_becomes_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "sbatch").write_text(
        "#!/bin/sh\necho 'sbatch: error: invalid partition specified: x' >&2\n"
        "echo 'sbatch: error: Batch job submission failed: Invalid partition name specified' >&2\nexit 1\n"
    )
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(EngineError) as error:
        slurm_state.call(["sbatch"])
    assert str(error.value) == (
        "sbatch: invalid partition specified: x; Batch job submission failed: Invalid partition name specified"
    )
