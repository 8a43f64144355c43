"""Bad steps leave the state as it is, bit for bit; what is remembered of them; a flipped bit; a step that hangs."""

import dataclasses
import json
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from scaling import exit_codes
from scaling.config import schema as cfg
from scaling.objectives.next_token import next_token
from scaling.parallel import distributed
from scaling.parallel.mesh import make_mesh
from scaling.parallel.sharding import batch_sharding
from scaling.runs.checkpoint import META, Checkpoints, from_json, to_json
from scaling.train import state as train_state
from scaling.train.reliability import guard, recompute
from scaling.train.step import make_train_step
from tests import tiny

ROOT = Path(__file__).resolve().parents[3]
LR = 1e-2


class Run:
    """A compiled step on a mesh, with fresh states and batches for it."""

    def __init__(self, config, devices=1):
        self.config = dataclasses.replace(config, guard=cfg.Guard(spike_factor=10))
        self.mesh = make_mesh(config.mesh, jax.devices()[:devices])
        self.parts = config.train.batch_tokens // config.train.sequence_length // config.train.microbatch_sequences
        with jax.set_mesh(self.mesh):
            self.step = make_train_step(self.config, self.mesh, next_token(self.config))
        self._fresh = train_state.create_state(self.config, self.mesh)

    def state(self):
        return jax.tree.map(lambda leaf: jax.device_put(np.array(leaf), leaf.sharding), self._fresh)

    def __call__(self, state, number, spoiled=None, lr=LR):
        """One step on batch ``number``; ``spoiled``: "loss" (no targets, so 0 / 0)."""
        batch = tiny.batch(number, self.parts, self.config.train.microbatch_sequences)
        if spoiled:
            batch.weights[:] = 0
        with jax.set_mesh(self.mesh):
            state, metrics = self.step(state, jax.device_put(batch, batch_sharding(self.mesh)), lr, self.parts)
        return state, {name: value.item() for name, value in metrics.items()}


@pytest.fixture(scope="module")
def run():
    return Run(tiny.config())


@pytest.fixture(scope="module")
def every_feature():
    """Pipeline, accumulation in a ramp, moments in bfloat16, replicas that share the optimizer."""
    config = tiny.config(
        {"num_layers": 4},
        microbatch_sequences=4,
        pipeline_microbatches=2,
        ramp_start_tokens=64,
        ramp_tokens=256,
    )
    mesh = cfg.Mesh(stage=2, data=2, shard_optimizer=True)
    optimizer = dataclasses.replace(config.optimizer, state_dtype="bfloat16")
    return Run(dataclasses.replace(config, mesh=mesh, optimizer=optimizer), devices=4)


def bits(state, *parts):
    parts = parts or ("params", "optimizer")
    leaves = jax.tree.leaves_with_path({part: state[part] for part in parts})
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


def with_leaf(state, change):
    """The state with the first of its matrices changed on the host."""
    leaves, structure = jax.tree.flatten(state["params"])
    number = max(range(len(leaves)), key=lambda i: leaves[i].size)
    values = np.array(leaves[number])
    change(values.reshape(-1))
    leaves[number] = jax.device_put(values, leaves[number].sharding)
    return dict(state, params=jax.tree.unflatten(structure, leaves))


@pytest.mark.parametrize("which", ["run", pytest.param("every_feature", marks=pytest.mark.slow)])
def test_a_bad_loss_leaves_the_state_untouched(request, which):
    run = request.getfixturevalue(which)
    state = run.state()
    for number in range(3):
        state, _ = run(state, number)
    before = bits(state)
    means = to_json(state["guard"])
    for in_a_row in (1, 2):
        state, metrics = run(state, 7, spoiled="loss")
        assert np.isnan(metrics["loss"]) and (metrics["bad_in_a_row"], metrics["skipped"]) == (in_a_row, in_a_row)
        assert bits(state) == before
    assert int(state["step"]) == 5
    after = to_json(state["guard"])
    assert all(after[name] == means[name] for name in ("loss", "grad_norm", "good")) and after["good"] == 3
    state, metrics = run(state, 3)
    assert (metrics["bad_in_a_row"], metrics["skipped"]) == (0, 2) and bits(state) != before
    other = run.state()
    for number in range(4):  # the same without the bad ones; there is no dropout, which depends on the count of steps
        other, _ = run(other, number)
    assert bits(other) == bits(state)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_bad_weights_are_seen_at_the_next_step_and_stay_as_they_are(run, value):
    state = with_leaf(run.state(), lambda values: values.__setitem__(slice(40, None, 64), value))
    before = bits(state)
    state, metrics = run(state, 0)
    assert not (np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"]))
    assert metrics["bad_in_a_row"] == 1 and bits(state) == before
    assert not guard.is_finite(state)


def test_an_update_that_overflows_is_no_checkpoint(run):
    """The loss is that of before the update, so it is still finite."""
    state, metrics = run(run.state(), 0, lr=np.inf)
    assert np.isfinite(metrics["loss"]) and metrics["bad_in_a_row"] == 0 and not guard.is_finite(state)


@pytest.mark.parametrize(("good", "factor", "bad"), [(100, 0.09, 1), (100, 0.11, 0), (99, 0.09, 0)])
@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_a_spike_is_ten_times_the_mean_of_a_hundred_good_steps(run, name, good, factor, bad):
    _, metrics = run(run.state(), 0)
    state = run.state()
    means = dict(loss=1e9, grad_norm=1e9) | {name: metrics[name] * factor}
    values = from_json(means | {"good": good}, state["guard"])
    state["guard"] = values
    before, means = bits(state), bits({"guard": {k: values[k] for k in ("loss", "grad_norm")}}, "guard")
    state, metrics = run(state, 0)
    assert metrics["bad_in_a_row"] == bad and (bits(state) == before) == bool(bad)
    after = bits({"guard": {k: state["guard"][k] for k in ("loss", "grad_norm")}}, "guard")
    assert (after == means) == bool(bad)


def test_means_are_those_of_the_good_steps(run):
    state, seen = run.state(), []
    for number in range(5):
        state, metrics = run(state, number, spoiled="loss" if number == 2 else None)
        if number != 2:
            seen.append(metrics)
    host = to_json(state["guard"])
    for name in ("loss", "grad_norm"):
        assert host[name] == pytest.approx(np.mean([metrics[name] for metrics in seen]), rel=1e-6)
    assert (host["good"], host["skipped"], host["in_a_row"]) == (4, 1, 0)


def test_what_is_remembered_comes_back_with_the_checkpoint_bit_for_bit(run, tmp_path):
    state, _ = run(run.state(), 0)
    state, _ = run(state, 1, spoiled="loss")
    saved = Checkpoints(tmp_path)
    saved.save(2, state, {"sequences": 0})
    saved.wait()
    target = train_state.abstract_state(run.config, run.mesh)
    again = saved.read_state(2, target)
    assert bits(again, *again) == bits(state, *state)
    assert saved.newest_whole() and saved.newest_whole(good=True) is None  # saved in the middle of bad steps
    # A checkpoint of before there was a guard.
    meta = json.loads((saved.directory / "000000002" / META).read_text())
    del meta["guard"]
    (saved.directory / "000000002" / META).write_text(json.dumps(meta))
    old = saved.read_state(2, target)
    assert bits(old) == bits(state) and set(to_json(old["guard"]).values()) == {0}
    saved.close()


class Flipping:
    """A train step that flips one bit of what it returns at one of its calls."""

    def __init__(self, run, call):
        self.run, self.call, self.calls = run, call, 0

    def __call__(self, state, number):
        state, metrics = self.run(state, number)
        self.calls += 1
        if self.calls == self.call:
            state = with_leaf(
                state, lambda values: values.view(np.uint32).__setitem__(5, values.view(np.uint32)[5] ^ 2)
            )
        return state, {name: np.float32(value) for name, value in metrics.items()}


@pytest.mark.parametrize("flipped", [0, 4, 5])
def test_a_flipped_bit_is_noticed_where_a_step_is_computed_twice(run, flipped):
    """Steps 3, 4 (twice), 5: calls 2 and 3 are those of step 4 when three steps were done before."""
    plain, want = run.state(), []
    for number in (3, 4, 5):
        plain, metrics = run(plain, number)
        want.append(np.float32(metrics["loss"]))
    call = {0: 0, 4: 3, 5: 4}[flipped]
    step = recompute.checked(Flipping(run, call), 2, first_step=2)
    with jax.set_mesh(run.mesh):
        state, got = run.state(), []
        try:
            for number in (3, 4, 5):
                state, metrics = step(state, number)
                got.append(metrics["loss"])
        except recompute.Faulty as error:
            assert flipped == 4 and len(got) == 1
            assert re.search(r"step 4 .*two results, in state\.params\.", str(error))
            assert "more:" not in str(error)  # nothing but that leaf
            return
    assert flipped != 4 and got == want
    assert (bits(state) == bits(plain)) == (flipped == 0)  # that of a step that is not looked at passes


def test_never_is_the_step_itself(run):
    assert recompute.checked(run.step, 0, 0) is run.step


WATCHED = """
    import sys, time
    from etils import epath
    from scaling.train.reliability.watchdog import Watchdog
    def where_it_hangs():
        time.sleep(60)
    with Watchdog(0.3, epath.Path(sys.argv[1]), 4) as watchdog:
        time.sleep(0.9)  # a first step may
        for _ in range(8):
            watchdog.step()
            time.sleep(0.1)
        with watchdog.phase("a validation"):
            time.sleep(0.9)
        print("so far", flush=True)
        if sys.argv[2] == "step":
            where_it_hangs()
        if sys.argv[2] == "phase":
            with watchdog.phase("a save"):
                where_it_hangs()
    time.sleep(1)
    print("ended")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("where", "limit"), [("step", 0.3), ("phase", 3), ("nowhere", 0)])
def test_what_hangs_is_ended_with_its_stacks(tmp_path, where, limit):
    start = time.monotonic()
    command = [sys.executable, "-c", textwrap.dedent(WATCHED), str(tmp_path), where]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("so far"), done.stderr
    if where == "nowhere":
        assert (done.returncode, done.stdout.split()[-1]) == (0, "ended") and not list(tmp_path.iterdir())
        return
    assert done.returncode == exit_codes.HUNG and time.monotonic() - start < 50
    name = {"step": "a step", "phase": "a save"}[where]
    for text in (done.stderr, (tmp_path / "stacks-4.txt").read_text()):
        assert f"{name} has taken more than {limit:g} s (config.guard.hang_seconds=0.3)" in text
        assert "in where_it_hangs" in text and "watchdog.py" in text


@pytest.mark.parametrize(
    ("error", "processes", "lost"),
    [
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer [10.0.0.1]:4793"), 2, True),
        (RuntimeError("UNAVAILABLE: Failed to send RPC to coordination service"), 2, True),
        (ValueError("UNKNOWN: Gloo AllGather failed"), 1, False),
        (ValueError("config.seed is 0 there and 3 here"), 2, False),
        (OSError("Connection reset by peer"), 2, False),  # a file system's
    ],
)
def test_a_lost_process_is_told_from_a_mistake(monkeypatch, error, processes, lost):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    assert distributed.is_lost_peer(error) == lost
