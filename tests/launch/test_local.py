"""Real trainings on this machine under supervisors: killed, frozen, several processes, launchers that are killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import state
from tests.experiments import SHAPES, experiment
from tests.programs import environment

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def launcher(tmp_path):
    """Starts launchers in one folder; whatever they started is gone at the end."""

    class Launcher:
        folder = tmp_path / "runs"

        def config(self, steps=60, sweep=False):
            runs = f"{SHAPES}, [tokens({128 * steps})]" if sweep else ""
            knobs = {"model__d_model": 16, "train__tokens": 128 * steps, "checkpoint__every_steps": max(20, steps // 5)}
            (tmp_path / "tiny.py").write_text(experiment(self.folder, runs, mesh__cpu_devices=1, **knobs))

        def start(self, *options, verb="launch"):
            usual = ["--target=local", "--config=tiny.py", "--first_delay=0.1", "--grace_seconds=20"]
            command = [sys.executable, "-m", "scaling", verb, *(usual if verb == "launch" else []), *options]
            variables = environment() | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
            return subprocess.Popen(command, cwd=tmp_path, env=variables, stdout=-1, stderr=-1, text=True)

        def run(self, *options, **more):
            process = self.start(*options, **more)
            out, err = process.communicate(timeout=900)
            return process.returncode, out, err

    made = Launcher()
    yield made
    for path in tmp_path.rglob("launch.json"):
        known = json.loads(path.read_text())
        for process in [known.get("launcher"), known.get("supervisor"), *known.get("children", [])]:
            if process and state.alive(process):
                os.kill(process["pid"], signal.SIGKILL)


def losses(run_dir):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def until(test, seconds=500):
    end = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def step(run_dir):
    path = run_dir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.slow
def test_two_processes_one_killed_are_the_same_run(launcher, tmp_path):
    """`make faults` freezes one and kills the coordinator too."""
    launcher.config(steps=150)
    options = ("--processes=2", "--config.mesh.fsdp=2", "--stall_seconds=300")
    code, _, err = launcher.run(*options, f"--config.workdir={tmp_path / 'whole'}")
    assert code == 0, err
    process, run_dir = launcher.start(*options), launcher.folder
    until(lambda: step(run_dir) > 40)
    os.kill(state.read(run_dir)["children"][1]["pid"], signal.SIGKILL)
    assert process.wait(600) == 0
    known = state.read(run_dir)
    assert known["restarts"]["total"] == 1 and any("starting again" in e["event"] for e in known["events"])
    assert losses(run_dir) == losses(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_was(launcher):
    launcher.config(steps=400, sweep=True)
    process, names = launcher.start("--parallel=1"), ("l1-d8-t51.2k", "l1-d16-t51.2k")
    first, second = (launcher.folder / name for name in names)
    until(lambda: step(second) > 5)  # the first has finished
    process.kill()
    process.wait()
    known = state.read(second)
    assert state.alive(known["supervisor"])  # the launcher's end is not the run's
    os.kill(known["supervisor"]["pid"], signal.SIGKILL)
    until(lambda: not state.alive(known["supervisor"]))
    before = losses(first)
    code, out, err = launcher.run("--parallel=1")
    assert code == 0 and "2 of 2 runs finished" in out, err
    assert losses(first) == before and [s for s, _ in losses(second)] == list(range(1, 401))
    assert json.loads((launcher.folder / "launch.json").read_text())["state"] == "finished"


@pytest.mark.slow
def test_stop_lets_runs_save_and_the_same_command_goes_on(launcher):
    launcher.config(steps=3000)
    process = launcher.start()
    until(lambda: step(launcher.folder) > 30)
    code, out, err = launcher.run(str(launcher.folder), verb="stop")
    assert code == 0 and "nothing runs" in out, err
    assert process.wait(300) == 143
    last = step(launcher.folder)
    assert (launcher.folder / f"checkpoints/{last:09d}/meta.json").exists()
    code, out, _ = launcher.run(str(launcher.folder), "--json", verb="status")
    (row,) = json.loads(out)
    assert (row["state"], row["step"], row["checkpoint"]) == ("stopped", last, last)
    process = launcher.start()
    until(lambda: step(launcher.folder) > last)
    process.send_signal(signal.SIGINT)
    assert process.wait(300) == 130


@pytest.mark.slow
def test_a_mistake_is_reported_and_not_tried_again(launcher):
    launcher.config()
    code, _, err = launcher.run("--config.data.train=nowhere/*.txt")
    assert code == 2 and "nowhere" in err
    assert state.read(launcher.folder)["restarts"]["total"] == 0


@pytest.mark.slow
def test_a_dry_run_starts_nothing(launcher):
    launcher.config(sweep=True)
    code, out, _ = launcher.run("--dry_run", "--processes=2")
    assert code == 0 and not launcher.folder.exists()
    assert out.count("-m launch.supervisor") == 2 and "--config.distributed.num_processes=2" in out
