"""Sweeps of real trainings through the command line: finished once, failed ones named, stopped and resumed."""

import json
import pwd
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from scaling import cli, exit_codes
from scaling.laws.runs import read_runs
from scaling.runs.lock import only_one
from scaling.sweep.machine import Machine
from scaling.sweep.progress import Clock, progress
from scaling.sweep.read import runs_of
from scaling.sweep.runner import Runner
from tests.experiments import SHAPES, experiment
from tests.programs import environment

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def sweep(tmp_path):
    """Writes a sweep file; returns (path, folder of the runs)."""

    def write(tokens="1024", grid="{}"):
        path = tmp_path / "small.py"
        runs = f"{SHAPES}, [tokens({tokens})], grid={grid}"
        path.write_text(experiment(tmp_path / "runs", runs, checkpoint__every_steps=50))
        return path, tmp_path / "runs"

    return write


def start(path, *options):
    command = [sys.executable, "-m", "scaling", "sweep", f"--config={path}", *options]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment() | {"JAX_PLATFORMS": "cpu"}, stdout=-1, stderr=-1, text=True
    )


def run(path, *options):
    process = start(path, *options)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def test_dry_run_lists_runs_and_trains_none(sweep, capsys):
    path, runs = sweep(tokens="1024, 4096")
    code = cli.main(["sweep", f"--config={path}", "--dry_run", "--device=TPU v5p", "--devices=4", "--mfu=0.5"])
    out = capsys.readouterr().out
    assert code == 0 and not runs.exists()
    lines = [line.split() for line in out.splitlines() if line.startswith("l1-")]
    assert [line[0] for line in lines] == ["l1-d8-t1.02k", "l1-d16-t1.02k", "l1-d8-t4.1k", "l1-d16-t4.1k"]
    assert "4 runs" in out and "50% of data sheet, bfloat16 dense: 459 TFLOP/s x 4 TPU v5p" in out


@pytest.mark.slow
def test_finishes_resumes_and_names_what_failed(sweep, capsys):
    # The learning rate of some runs is absurd: they diverge.
    path, runs = sweep(grid='{"optimizer.peak_lr": (1e-3, 1e30), "optimizer.clip_norm": (0.0,)}')
    code, _, err = run(path)
    assert code == exit_codes.DIVERGED
    assert "2 of 4 runs finished" in err
    assert err.count("failed: l1-d") == 2 and "exit code 3, log " in err and "peak_lr" in err
    good = sorted(p.name for p in runs.iterdir() if "peak_lr0.001" in p.name)
    points = read_runs([runs])
    assert sorted(Path(name).name for name in points.names) == good
    assert len(points.left_out) == 2

    # Again: the finished are not touched, the others are tried again.
    before = {name: (runs / name / "metrics.jsonl").stat().st_mtime_ns for name in good}
    code, _, err = run(path, "--parallel=1")
    assert code == exit_codes.DIVERGED and "2 of 4 runs finished" in err
    assert {name: (runs / name / "metrics.jsonl").stat().st_mtime_ns for name in good} == before
    assert err.count(" running") == err.count("+30-clip_norm0 running") == 2 or "1e+30" in err

    # What is refused stays as it is in a dry run; what was measured elsewhere is not mixed in.
    code = cli.main(["sweep", f"--config={path}", "--dry_run", "--config.eval.tokens=512"])
    err = capsys.readouterr().err
    assert code == exit_codes.USAGE and re.search("eval.tokens.* 256 .* 512 ", err)

    # A sweep that would make other runs of the same names is refused.
    path.write_text(path.read_text().replace("warmup_tokens = 0", "warmup_tokens = 128"))
    code = cli.main(["sweep", f"--config={path}"])
    err = capsys.readouterr().err
    assert code == exit_codes.USAGE and re.search("warmup_tokens.* 0 .* 128 ", err)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_all_runs_and_the_same_command_goes_on(sweep, number, expected):
    path, runs = sweep(tokens="1048576")  # far more than are trained before the signal
    process = start(path)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if sum(1 for p in runs.glob("*/metrics.jsonl") if p.read_text().count("\n") > 3) == 2:
            break
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == expected, err
    assert "stopped: " in err and "same command" in err
    steps = {p.name: json.loads((p / "metrics.jsonl").read_text().splitlines()[-1])["step"] for p in runs.glob("l*")}
    assert all(0 < step < 8192 for step in steps.values()), steps
    assert all((p / "checkpoints").is_dir() for p in runs.glob("l*"))
    logs = {p: (p / "train.log").read_text() for p in runs.glob("l*")}
    assert all("stopped by a signal" in text for text in logs.values())


def test_wrong_files_and_options_are_refused(sweep, tmp_path, capsys):
    path, _ = sweep()

    def refused(*arguments):
        code = cli.main(["sweep", *arguments])
        err = capsys.readouterr().err
        assert code == exit_codes.USAGE and err.count("\n") == 1, err
        return err

    assert "needs --config=FILE" in refused()
    assert "does not exist" in refused(f"--config={tmp_path / 'none.py'}")
    assert "use the verb train" in refused(f"--config={ROOT / 'experiments/cpu/demo.py'}")
    assert "must not be negative" in refused(f"--config={path}", "--parallel=-1")
    assert "abacus" in refused(f"--config={path}", "--dry_run", "--device=abacus")
    assert "belongs to --dry_run" in refused(f"--config={path}", "--device=TPU v4")
    assert "belongs to --device" in refused(f"--config={path}", "--dry_run", "--devices=4")
    with pytest.raises(ValueError, match="must be local"):  # as launching here asks for
        runs_of(str(path), ["--config.workdir=gs://bucket/runs"])
    text = path.read_text()
    path.write_text(text.replace("grid={}", "peak_lr=lambda scale: 1 / 0"))
    last = text.count("\n")
    assert f"small.py:{last}: ZeroDivisionError" in refused(f"--config={path}", "--dry_run")
    path.write_text("def get_sweep():\n    return {str(i): i for i in range(1000)}\n")
    said = refused(f"--config={path}")
    assert "must return a scaling.sweep.plan.Sweep, not a dict" in said and len(said) < 400
    assert cli.main(["train", f"--config={path}"]) == exit_codes.USAGE
    assert "use the verb sweep" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_waits_for_what_another_process_trains(sweep):
    path, runs = sweep(tokens="4096")
    busy = runs / "l1-d8-t4.1k"
    busy.mkdir(parents=True)
    with only_one(busy):
        process = start(path)
        time.sleep(8)
        assert process.poll() is None
        assert not (runs / "l1-d16-t4.1k").exists()  # its cores may be those of the other process
        second, _, err = run(path)
        assert second == exit_codes.USAGE and "another sweep" in err
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "elsewhere" in err
    assert len(read_runs([runs]).names) == 2


@pytest.mark.slow
def test_a_killed_run_is_named_with_its_signal(sweep):
    path, runs = sweep(tokens="131072")
    process = start(path)
    metrics = runs / "l1-d8-t131k/metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.05)
    subprocess.run(["pkill", "-KILL", "-f", f"{runs}/l1-d8-t131k/plan.json"], check=True)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "failed: l1-d8-t131k: killed by SIGKILL (out of memory?)" in err
    assert "1 of 2 runs finished" in err


def machine(platform, count):
    return Machine(platform, "", tuple(range(count)), 1e12, "")


def test_a_log_of_an_owner_whom_this_machine_does_not_know_is_gone_on_with(sweep, monkeypatch):
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    path, runs = sweep()
    one = runs_of(str(path), [f"--config.workdir={runs}"])[0]
    log = Path(one.config.workdir) / "train.log"
    log.parent.mkdir(parents=True)
    log.write_text("before\n")
    runner = Runner([one], machine("cpu", 1), 1, 0.1, [sys.executable, "-c", "print('after')"])
    runner.run(lambda _: None)
    assert runner.jobs[0].logged == len("before\n") and log.read_text() == "before\nafter\n"


def test_slots_by_machine():
    from scaling.config.schema import Mesh

    gpus = machine("gpu", 8)
    assert gpus.slots(Mesh(), 0) == 8
    assert gpus.slots(Mesh(fsdp=4), 0) == 2
    assert gpus.slots(Mesh(fsdp=4), 1) == 1
    assert machine("tpu", 4).slots(Mesh(), 0) == 1
    assert machine("cpu", 1).slots(Mesh(), 0) == 1
    with pytest.raises(ValueError, match="2 runs"):
        gpus.slots(Mesh(fsdp=4), 3)
    with pytest.raises(ValueError, match="16 devices"):
        gpus.slots(Mesh(fsdp=16), 0)
    with pytest.raises(ValueError, match="one process"):
        machine("tpu", 4).slots(Mesh(), 2)


def test_gpu_runs_see_their_own_devices(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with machine("gpu", 4).restrict([2, 3]) as environment:
        assert environment["CUDA_VISIBLE_DEVICES"] == "2,3"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    with machine("gpu", 4).restrict([2, 3]) as environment:
        assert environment["CUDA_VISIBLE_DEVICES"] == "6,7"


def test_progress_is_the_last_loss_whatever_follows_it(tmp_path):
    config = SimpleNamespace(workdir=str(tmp_path), train=SimpleNamespace(tokens=200))
    job = SimpleNamespace(config=config, scale=SimpleNamespace(flops_per_token=6.0))
    assert (progress(job).tokens, progress(job).finished) == (0, False)
    steps = [{"step": i, "tokens": 100 * i, "loss": 3.0 / i, "tokens_per_second": 50.0} for i in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps) + '{"step": 3, "lo')
    found = progress(job)
    assert (found.tokens, found.loss, found.flops_per_second, found.finished) == (200, 1.5, 300.0, False)
    task = {"step": 2, "tokens": 200, "task": "t", "shots": 0, "scores": {}}
    lines = [{"step": 2, "tokens": 200, "loss": 1.25}] + [task] * 1000
    (tmp_path / "evals.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = progress(job)
    assert (found.tokens, found.loss, found.finished) == (200, 1.25, True)


def test_makespan_fills_the_slots_in_order():
    clock = Clock(1e12, 0.3)
    assert clock.makespan([], [4, 3, 2], 1) == 9
    assert clock.makespan([], [4, 3, 2], 2) == 5
    assert clock.makespan([10], [4, 3, 2], 2) == 10
    assert clock.makespan([], [], 2) == 0
