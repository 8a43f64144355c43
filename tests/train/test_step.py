import jax
import numpy as np
import pytest

from scaling import config as cfg
from scaling.parallel.mesh import make_mesh
from scaling.parallel.sharding import batch_sharding
from scaling.train import state as train_state
from scaling.train.schedule import BatchSchedule
from scaling.train.step import make_eval_step, make_train_step
from tests import tiny


@pytest.mark.slow
def test_accumulation_equals_the_large_batch():
    whole, state = tiny.train(tiny.config(), 6)
    for microbatch in (1, 4):
        parts, parts_state = tiny.train(tiny.config(microbatch_sequences=microbatch), 6)
        np.testing.assert_allclose(parts, whole, rtol=2e-6)
        for a, b in zip(jax.tree.leaves(parts_state["params"]), jax.tree.leaves(state["params"]), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.slow
def test_uneven_masks_are_weighted_by_token_not_by_microbatch():
    def loss(microbatch):
        config = tiny.config(microbatch_sequences=microbatch)
        mesh = make_mesh(cfg.Mesh(), jax.devices()[:1])
        batch = tiny.batch(0, 8 // microbatch, microbatch)
        batch["targets"].reshape(8, 16)[:4, 3:] = -1  # half of the sequences count 3 targets only
        with jax.set_mesh(mesh):
            state = train_state.create_state(config, mesh)
            _, metrics = make_train_step(config, mesh, tiny.EOT)(state, batch, 0.0, 8 // microbatch)
        return float(metrics["loss"]), float(metrics["grad_norm"])

    np.testing.assert_allclose(loss(4), loss(8), rtol=1e-5)


def test_the_ramp_needs_one_compilation_and_ignores_what_is_beyond():
    config = tiny.config(microbatch_sequences=2, ramp_start_tokens=32, ramp_tokens=640)
    mesh = make_mesh(cfg.Mesh(), jax.devices()[:1])
    schedule = BatchSchedule.from_config(config.train)
    counts = [schedule.span(s)[1] // 2 for s in range(schedule.num_steps)]
    assert counts[0] == 1 and counts[-1] == 4 and sorted(set(counts)) == [1, 2, 3, 4]
    with jax.set_mesh(mesh):
        step = make_train_step(config, mesh, tiny.EOT)
        losses = []
        for garbage in (0, 7):
            state = train_state.create_state(config, mesh)
            for i in (0, 8, 16):
                batch = tiny.batch(i, 4, 2)
                for values in batch.values():
                    values[counts[i] :] = garbage
                state, metrics = step(state, jax.device_put(batch, batch_sharding(mesh)), 1e-2, counts[i])
                losses.append(float(metrics["loss"]))
    assert losses[:3] == losses[3:]
    assert step._cache_size() <= 2  # fresh and donated states may be laid out apart; never one a batch size


def test_training_learns_a_repeated_batch():
    config = tiny.config()
    mesh = make_mesh(cfg.Mesh(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        state, step = train_state.create_state(config, mesh), make_train_step(config, mesh, tiny.EOT)
        batch = tiny.batch(0)
        for _ in range(80):
            state, metrics = step(state, batch, 3e-3, 1)
    assert metrics["loss"] < 0.5 and int(state["step"]) == 80


def test_evaluation_counts_only_targets_and_uses_no_dropout():
    config = tiny.config({"dropout_residual": 0.5})
    mesh = make_mesh(cfg.Mesh(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = train_state.create_state(config, mesh)["params"]
        evaluate = make_eval_step(config, mesh, tiny.EOT)
        batch = tiny.batch(0)
        full = evaluate(params, batch)
        batch["targets"] = batch["targets"].copy()  # the computation may still be reading the other
        batch["targets"][0, 4:] = -1
        half = evaluate(params, batch)
        assert evaluate(params, batch).nll == half.nll
    assert full.targets == 128 and half.targets == 64
    assert float(half.nll) == pytest.approx(float(full.nll) * 0.5, rel=0.1)


@pytest.mark.parametrize("masked", [False, True])
def test_document_mask_reaches_the_loss(masked):
    config = tiny.config({"document_mask": masked})
    batch = tiny.batch(0)
    batch["inputs"][:, :, 8] = tiny.EOT
    other = {k: v.copy() for k, v in batch.items()}
    other["inputs"][:, :, :8] = 1  # another first document
    for b in (batch, other):
        b["targets"][:, :, :8] = -1  # only the second document counts
    mesh = make_mesh(cfg.Mesh(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = train_state.create_state(config, mesh)["params"]
        evaluate = make_eval_step(config, mesh, tiny.EOT)
        assert (float(evaluate(params, batch).nll) == float(evaluate(params, other).nll)) == masked
