"""``scaling launch --target=slurm`` on a real Slurm of two nodes, which the tests start themselves."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from tests.experiments import experiment
from tests.faults import lab
from tests.launch import real_slurm
from tests.programs import environment

ROOT = Path(__file__).resolve().parents[2]
LACKING = real_slurm.lacking()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(LACKING), reason=LACKING)]

STEPS = 120
KNOBS = dict(sample__prompts=(), log__batch_hash=True, checkpoint__every_steps=10, train__tokens=128 * STEPS)


@pytest.fixture(scope="module")
def slurm():
    with real_slurm.started() as variables:
        yield variables


@pytest.fixture
def scaling(slurm, tmp_path):
    """Starts a verb on that Slurm; the process runs in ``tmp_path``."""
    given = environment() | slurm | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    started = []

    def start(verb, *options):
        usual = ["--target=slurm", "--poll_seconds=0.5"] if verb == "launch" else []
        command = [sys.executable, "-m", "scaling", verb, *usual, *options]
        started.append(subprocess.Popen(command, cwd=tmp_path, env=given, stdout=-1, stderr=-1, text=True))
        return started[-1]

    def run(verb, *options):
        process = start(verb, *options)
        out, error = process.communicate(timeout=300)
        return process.returncode, out, error

    run.start = start
    yield run
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)


def wait(ready, seconds=90):
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until
        time.sleep(0.1)


def weights(run_dir):
    """Every number of the newest checkpoint; ``lab.weights`` needs the devices of the run, which were on two nodes."""
    newest = sorted(path for path in (run_dir / "checkpoints").iterdir() if path.name.isdecimal())[-1]
    handler, found = ocp.StandardCheckpointHandler(), {}
    for name in ("params", "optimizer"):
        path = epath.Path(newest / name)
        target = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), handler.metadata(path).tree)
        tree = handler.restore(path, args=ocp.args.StandardRestore(target))
        found |= {name + jax.tree_util.keystr(k): v.tobytes() for k, v in jax.tree.leaves_with_path(tree)}
    return found


def test_two_nodes_a_preemption_and_a_time_limit_are_one_undisturbed_process(slurm, scaling, tmp_path):
    """The names of the nodes cannot be resolved. The signal of the time limit is sent early, to save a minute."""
    text = experiment(tmp_path / "run", mesh__fsdp=2, **KNOBS)
    (tmp_path / "small.py").write_text(text)
    launcher = scaling.start("launch", "--config=small.py", "--nodes=2", "--time=10")
    alone = scaling.start("train", "--config=small.py", "--config.workdir=alone", "--config.mesh.cpu_devices=2")
    run = tmp_path / "run"

    def attempts():
        return [json.loads(path.read_text()) for path in sorted((run / "attempts").glob("*.json"))]

    def ahead(count):
        """Whether the last of so many starts has done some steps."""
        return lambda: len(attempts()) == count and attempts()[-1]["step"] >= attempts()[-1]["first_step"] + 13

    wait(ahead(1))
    urgent = ["--partition=high", "--nodes=2", f"--output={tmp_path}/urgent", "--wrap=hostname"]
    real_slurm.command_of(slurm, "sbatch", *urgent)
    wait(ahead(2))
    number = real_slurm.command_of(slurm, "squeue", "--noheader", "--states=RUNNING", "--format=%A").strip()
    real_slurm.command_of(slurm, "scancel", "--signal=TERM", "--batch", number)
    _, error = launcher.communicate(timeout=200)
    assert launcher.returncode == 0, error
    assert alone.wait(200) == 0
    assert not lab.differences(run, tmp_path / "alone", tolerance=1e-30)  # curves; weights below
    assert lab.curve(run) == lab.curve(tmp_path / "alone")
    assert weights(run) == weights(tmp_path / "alone") and len(weights(run)) > 10
    preempted, signalled, last = attempts()
    assert [one["exit_code"] for one in (signalled, last)] == [138, 0]
    assert last["first_step"] == signalled["step"]  # saved in time
    # Slurm tells a run that it preempts to end, and one process may still save. Else the interval is lost at most, and
    # the steps that were done while saving.
    assert 0 <= preempted["step"] - signalled["first_step"] <= 20
    _, out, _ = scaling("status", "run", "--json")
    (row,) = json.loads(out)
    assert (row["state"], row["step"], row["restarts"]) == ("finished", STEPS, 2)


def test_an_array_runs_so_many_at_a_time_and_stops(slurm, scaling, tmp_path):
    sweep = "[Shape(1, 8, 1)], [tokens(1280000, 2560000, 5120000)]"
    (tmp_path / "sweep.py").write_text(experiment(tmp_path / "sweep", sweep, sample__prompts=()))
    code, _, error = scaling("launch", "--config=sweep.py", "--parallel=1", "--detach")
    assert code == 0, error
    wait((tmp_path / "sweep/l1-d8-t1.28m/metrics.jsonl").exists)
    code, out, _ = scaling("status", "sweep", "--json")
    assert [(row["state"], row["reason"]) for row in json.loads(out)] == [
        ("running", ""),
        ("waiting", "JobArrayTaskLimit"),
        ("waiting", "JobArrayTaskLimit"),
    ]
    code, out, error = scaling("stop", "sweep")
    assert code == 0 and "nothing runs" in out, error
    assert not real_slurm.command_of(slurm, "squeue", "--noheader")
    code, out, _ = scaling("status", "sweep", "--json")
    rows = json.loads(out)
    assert [row["state"] for row in rows] == ["stopped"] * 3
    assert rows[0]["checkpoint"] == rows[0]["step"] > 0  # saved when it was told to stop


def test_what_slurm_refuses_is_said_and_nothing_is_written(scaling, tmp_path):
    (tmp_path / "small.py").write_text(experiment(tmp_path / "run", **KNOBS))
    for option, said in (
        ("--partition=nowhere", "invalid partition specified: nowhere"),
        ("--constraint=h100", "Invalid feature specification"),
        ("--nodes=4", "Requested node configuration is not available"),
        ("--sbatch=--nonsense", "unrecognized option '--nonsense'"),
    ):
        code, _, error = scaling("launch", "--config=small.py", option)
        assert code == 2 and said in error and len(error.splitlines()) == 1, error
    assert not (tmp_path / "run").exists()
