import jax
import numpy as np
import pytest

from scaling.config import schema as cfg
from scaling.data.batch import of_sequences
from scaling.objectives.next_token import next_token
from scaling.parallel.mesh import make_mesh
from scaling.parallel.sharding import batch_sharding
from scaling.train import state as train_state
from scaling.train.schedule import BatchSchedule
from scaling.train.step import make_eval_step, make_train_step
from tests import tiny


@pytest.mark.slow
def test_accumulation_equals_the_large_batch():
    whole, state = tiny.train_on_one(6)
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
        batch.weights.reshape(8, 16)[:4, 3:] = 0  # half of the sequences count 3 targets only
        with jax.set_mesh(mesh):
            state = train_state.create_state(config, mesh)
            _, metrics = make_train_step(config, mesh, next_token(config))(state, batch, 0.0, 8 // microbatch)
        return float(metrics["loss"]), float(metrics["grad_norm"])

    np.testing.assert_allclose(loss(4), loss(8), rtol=1e-5)


def test_the_ramp_needs_one_compilation_and_ignores_what_is_beyond():
    config = tiny.config(microbatch_sequences=2, ramp_start_tokens=32, ramp_tokens=640)
    mesh = make_mesh(cfg.Mesh(), jax.devices()[:1])
    schedule = BatchSchedule.from_config(config.train)
    counts = [schedule.span(s)[1] // 2 for s in range(schedule.num_steps)]
    assert counts[0] == 1 and counts[-1] == 4 and sorted(set(counts)) == [1, 2, 3, 4]
    with jax.set_mesh(mesh):
        step = make_train_step(config, mesh, next_token(config))
        losses = []
        for garbage in (0, 7):
            state = train_state.create_state(config, mesh)
            for i in (0, 8, 16):
                batch = tiny.batch(i, 4, 2)
                batch = jax.tree.map(np.array, batch)
                for values in (batch.tokens, batch.targets, batch.weights):
                    values[counts[i] :] = garbage
                state, metrics = step(state, jax.device_put(batch, batch_sharding(mesh)), 1e-2, counts[i])
                losses.append(float(metrics["loss"]))
    assert losses[:3] == losses[3:]
    assert step._cache_size() <= 2  # fresh and donated states may be laid out apart; never one a batch size


def test_training_learns_a_repeated_batch():
    config = tiny.config()
    mesh = make_mesh(cfg.Mesh(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        state, step = train_state.create_state(config, mesh), make_train_step(config, mesh, next_token(config))
        batch = tiny.batch(0)
        for _ in range(80):
            state, metrics = step(state, batch, 3e-3, 1)
    assert metrics["loss"] < 0.5 and int(state["step"]) == 80


def test_evaluation_counts_only_targets_and_uses_no_dropout():
    config = tiny.config({"dropout_residual": 0.5})
    mesh = make_mesh(cfg.Mesh(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = train_state.create_state(config, mesh)["params"]
        evaluate = make_eval_step(config, mesh, next_token(config))
        batch = tiny.batch(0)
        full = evaluate(params, batch)
        weights = batch.weights.copy()  # the computation may still be reading the other
        weights[0, 4:] = 0
        half = evaluate(params, batch._replace(weights=weights))
        assert evaluate(params, batch._replace(weights=weights)).objective == half.objective
    assert full.weight == 128 and half.weight == 64
    assert float(half.metrics["loss"]) == pytest.approx(float(full.metrics["loss"]) * 0.5, rel=0.1)


@pytest.mark.parametrize("masked", [False, True])
def test_document_mask_reaches_the_loss(masked):
    config = tiny.config({"document_mask": masked})
    sequences = np.random.default_rng(0).integers(1, tiny.VOCAB, (1, 8, 17)).astype(np.int32)
    sequences[:, :, 8] = tiny.EOT
    other = sequences.copy()
    other[:, :, :8] = 1  # another first document
    weights = np.zeros((1, 8, 16), np.float32)
    weights[:, :, 8:] = 1  # only the second document counts
    first, second = (
        of_sequences(x, separator=tiny.EOT if masked else None)._replace(weights=weights) for x in (sequences, other)
    )
    mesh = make_mesh(cfg.Mesh(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = train_state.create_state(config, mesh)["params"]
        evaluate = make_eval_step(config, mesh, next_token(config))
        assert (float(evaluate(params, first).objective) == float(evaluate(params, second).objective)) == masked
