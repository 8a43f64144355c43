"""Whole runs with bad steps in them: skipped, rolled back from, given up; and the same after every resume."""

import json
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest

from scaling import cli, exit_codes
from scaling.commands import training as command
from scaling.runs.model import load_run
from scaling.train.reliability import guard
from tests.programs import environment

ROOT = Path(__file__).resolve().parents[3]
SMOKE = [
    f"--config={ROOT / 'experiments/cpu/smoke.py'}",
    "--config.sample.prompts=()",
    "--config.log.tensorboard=false",
]
GIVEN = [
    *SMOKE,
    "--config.log.batch_hash=true",
    "--config.checkpoint.every_steps=4",
    "--config.checkpoint.keep_last=9",
    "--config.eval.every_steps=0",
]


class Crash(Exception):
    """Stands in for a kill."""


class Faults:
    """Wraps the compiled step of a run: batches named by their content lose their targets, so that the loss is 0 / 0.

    The state of a run can be spoiled, too, and the run be crashed, at a call.
    """

    def __init__(self, monkeypatch):
        self.poisoned, self.seen, self.calls = set(), [], 0
        self.crash_at = self.spoil_at = self.poison_from = None
        make = command.make_train_step

        def made(*given):
            step = make(*given)

            def faulty(state, batch, *rest):
                self.calls += 1
                if self.calls == self.crash_at:
                    raise Crash
                content = np.asarray(batch.tokens).tobytes()
                self.seen.append(content)
                if content in self.poisoned or (self.poison_from and self.calls >= self.poison_from):
                    nothing = jax.device_put(np.zeros(batch.weights.shape, np.float32), batch.weights.sharding)
                    batch = batch._replace(weights=nothing)
                if self.calls == self.spoil_at:
                    leaves, structure = jax.tree.flatten(state["params"])
                    leaves[0] = leaves[0] * np.float32(np.nan)
                    state = dict(state, params=jax.tree.unflatten(structure, leaves))
                return step(state, batch, *rest)

            return faulty

        monkeypatch.setattr(command, "make_train_step", made)

    def train(self, run_dir, *overrides, crash_at=None):
        self.calls, self.crash_at = 0, crash_at
        self.seen = []
        return cli.main(["train", *GIVEN, f"--config.workdir={run_dir}", *overrides])


@pytest.fixture
def faults(monkeypatch):
    return Faults(monkeypatch)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A run without faults, and the content of its batches."""
    with pytest.MonkeyPatch.context() as patch:
        faults, run_dir = Faults(patch), tmp_path_factory.mktemp("sound") / "run"
        assert faults.train(run_dir) == 0
        return run_dir, faults.seen


def lines(run_dir, file):
    path = run_dir / file
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def numbers(run_dir):
    names = ("step", "tokens", "loss", "lr", "grad_norm", "batch_hash", "skipped")
    return [{name: line.get(name) for name in names} for line in lines(run_dir, "metrics.jsonl")]


def weights(run_dir):
    _, params = load_run(run_dir)
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in jax.tree.leaves_with_path(params)}


def resumed_anywhere(faults, run_dir, tmp_path, crashes=(), older=()):
    """The run again, crashed at calls and resumed; and from each of its own older checkpoints, must be the same."""
    want = numbers(run_dir), weights(run_dir), lines(run_dir, "bad_steps.jsonl")
    for number in crashes:
        other = tmp_path / f"crashed{number}"
        with pytest.raises(Crash):
            faults.train(other, crash_at=number)
        assert faults.train(other) == 0
        assert (numbers(other), weights(other), lines(other, "bad_steps.jsonl")) == want, number
    for step in older:
        other = tmp_path / f"older{step}"
        shutil.copytree(run_dir, other)
        for path in (other / "checkpoints").iterdir():
            if path.name.isdigit() and int(path.name) > step:
                shutil.rmtree(path)
        assert faults.train(other) == 0
        assert (numbers(other), weights(other)) == want[:2], step


@pytest.mark.slow
def test_one_bad_batch_is_skipped_and_three_in_a_row_are_left_out(faults, sound, tmp_path, capfd):
    reference, seen = sound
    whole = numbers(reference)
    faults.poisoned = {seen[5], *seen[9:12]}
    run_dir = tmp_path / "run"
    assert faults.train(run_dir) == 0
    noted = lines(run_dir, "bad_steps.jsonl")
    assert [(n["step"], n["in_a_row"]) for n in noted] == [(6, 1), (10, 1), (11, 2), (12, 3)]
    for line, before, then in ((n, whole[n["step"] - 2], whole[n["step"] - 1]) for n in noted):
        assert np.isnan(line["loss"]) and line["rollbacks"] == 0
        assert (line["tokens"], line["batch_hash"]) == (then["tokens"], then["batch_hash"])
        assert line["first_sequence"] == before["tokens"] // 32
        assert line["sequences"] == (then["tokens"] - before["tokens"]) // 32
    (entry,) = json.loads((run_dir / "rollbacks.json").read_text())
    assert entry == {"step": 8, "sequences": (whole[11]["tokens"] - whole[7]["tokens"]) // 32, "present": 12}
    assert "back to the checkpoint of step 8" in capfd.readouterr().err
    got = numbers(run_dir)
    assert got[:5] == whole[:5] and [n["step"] for n in got] == [n for n in range(1, 21) if n != 6]
    assert [n["skipped"] for n in got] == [0] * 5 + [1] * 14  # on the way to the last state
    assert faults.seen[:12] == seen[:12] and faults.seen[12] == seen[12]  # now the batch of step 9
    assert not set(seen[8:12]) & set(faults.seen[12:])
    # Among the bad steps, and some after the roll-back; and from a checkpoint of before it.
    resumed_anywhere(faults, run_dir, tmp_path, crashes=(12, 18), older=(4,))
    # Without the file, the data that were left out would come back.
    (run_dir / "rollbacks.json").unlink()
    assert faults.train(run_dir) == exit_codes.USAGE
    assert re.search("0 roll-backs.* step 20 .* 1", capfd.readouterr().err)


@pytest.mark.slow
def test_what_rolling_back_does_not_help_ends_with_what_was_tried(faults, tmp_path, capfd):
    faults.poison_from = 7
    assert faults.train(tmp_path / "run") == exit_codes.DIVERGED
    error = capfd.readouterr().err.splitlines()[-1]
    for words in ("3 bad steps in a row", "last good checkpoint, step 4", "was tried", "peak_lr"):
        assert words in error
    last = lines(tmp_path / "run", "metrics.jsonl")[-1]
    assert np.isnan(last["loss"]) and last["step"] == 7
    assert len(lines(tmp_path / "run", "bad_steps.jsonl")) == 6
    faults.poison_from = 1
    assert faults.train(tmp_path / "fresh", "--config.guard.rollback_after=0") == exit_codes.DIVERGED
    assert "at step 1 " in (error := capfd.readouterr().err.splitlines()[-1]) and "no checkpoint yet" in error


@pytest.mark.slow
def test_weights_gone_bad_are_left_behind(faults, sound, tmp_path, monkeypatch, capfd):
    """In mid-run, at a save, and in a checkpoint of old."""
    reference, _ = sound
    faults.spoil_at = 10
    run_dir = tmp_path / "run"
    assert faults.train(run_dir) == 0
    assert json.loads((run_dir / "rollbacks.json").read_text())[0]["step"] == 8
    assert all(np.isfinite(n["loss"]) for n in numbers(run_dir))
    # Saved as no version of this program would: NaN in step 12, which is found when it is read.
    faults.spoil_at = None
    old = tmp_path / "old"
    shutil.copytree(reference, old)
    for step in (16, 20):
        shutil.rmtree(old / f"checkpoints/{step:09d}")
    with monkeypatch.context() as patch:
        patch.setattr(guard, "is_finite", lambda state: True)
        faults.spoil_at = 4
        assert faults.train(old, "--config.train.tokens=6144", "--config.guard.rollback_after=9") == 0
    faults.spoil_at = None
    capfd.readouterr()
    assert faults.train(old) == 0
    error = capfd.readouterr().err
    assert "passed over" in error and "not finite" in error and "resuming" in error
    assert numbers(old)[-1]["loss"] == numbers(reference)[-1]["loss"] and weights(old) == weights(reference)
    assert list((old / "checkpoints").glob("*.damaged"))


@pytest.mark.slow
def test_a_flipped_bit_ends_the_run_with_its_code(monkeypatch, tmp_path, capfd):
    make = command.make_train_step

    def made(*given):
        step, calls = make(*given), []

        def flipping(*given):
            state, metrics = step(*given)
            calls.append(1)
            if len(calls) == 7:  # step 6 for the first time; step 3 took two
                state = dict(state, params=jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].add(1), state["params"]))
            return state, metrics

        return flipping

    monkeypatch.setattr(command, "make_train_step", made)
    given = ["--config.guard.recompute_every_steps=3", "--config.checkpoint.every_steps=2"]
    assert cli.main(["train", *SMOKE, f"--config.workdir={tmp_path}/run", *given]) == exit_codes.FAULTY
    error = capfd.readouterr().err.splitlines()[-1]
    assert re.match(r"scaling train: error: step 6 .*two results, in state\.params\.", error)
    assert sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir()) == ["000000002", "000000004"]


HANGS = """
    import sys, time
    from scaling import cli
    from scaling.commands import training as command
    make = command.make_train_step
    def made(*given):
        step, calls = make(*given), []
        def hanging(*given):
            calls.append(1)
            if len(calls) == 5:
                time.sleep(600)
            return step(*given)
        return hanging
    command.make_train_step = made
    sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_step_that_hangs_ends_the_process(tmp_path):
    given = [*SMOKE, f"--config.workdir={tmp_path}/run", "--config.guard.hang_seconds=10"]
    command = [sys.executable, "-c", textwrap.dedent(HANGS), "train", *given, "--config.checkpoint.every_steps=3"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == exit_codes.HUNG, done.stderr
    assert "more than 10 s" in done.stderr and "in hanging" in done.stderr
    assert "in hanging" in (tmp_path / "run/stacks-0.txt").read_text()
    assert (tmp_path / "run/checkpoints/000000003/meta.json").exists()
