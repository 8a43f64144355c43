"""Moments kept in bfloat16: what rounding at random keeps, and what checkpoints and training make of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config import schema as cfg
from scaling.model import decoder
from scaling.parallel.mesh import make_mesh
from scaling.runs.checkpoint import Checkpoints
from scaling.train import state as train_state
from scaling.train.optimizer import make_optimizer
from tests import tiny

NARROW = dataclasses.replace(tiny.config().optimizer, state_dtype="bfloat16")


def narrow(config):
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, state_dtype="bfloat16"))


def moments(state):
    """Of all of the optimizer's state, the first and second moments, as arrays."""
    return jax.tree.leaves((state["optimizer"][2].mu, state["optimizer"][2].nu))


@pytest.fixture(scope="module")
def trained():
    """Losses of ten steps with narrow moments, and the state after them."""
    return tiny.train(narrow(tiny.config()), 10)


@pytest.mark.slow
@pytest.mark.parametrize("beta2", [0.95, 0.999])
def test_a_second_moment_falls_without_gradients(beta2):
    """Rounded to the nearest it would stay for ever at 0.999, whose steps are below half of bfloat16's spacing."""
    model = tiny.model()
    transform = make_optimizer(dataclasses.replace(NARROW, beta2=beta2, clip_norm=0.0, weight_decay=0.0), model)
    steps = round(1 / (1 - beta2))

    @jax.jit
    def run():
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape), decoder.abstract(model))
        ones = jax.tree.map(jnp.ones_like, zeros)
        _, start = transform.update(ones, transform.init(zeros), zeros)
        return start, jax.lax.fori_loop(0, steps, lambda _, state: transform.update(zeros, state, zeros)[1], start)

    start, last = run()
    for first, then in zip(jax.tree.leaves(start[2].nu), jax.tree.leaves(last[2].nu), strict=True):
        assert then.dtype == jnp.bfloat16
        if first.size > 1000:
            kept = np.mean(np.asarray(then, np.float32)) / np.mean(np.asarray(first, np.float32))
            assert kept == pytest.approx(beta2**steps, rel=0.02)
    nearest = jnp.bfloat16(1.0)
    assert jnp.bfloat16(0.999 * nearest.astype(jnp.float32)) == nearest


@pytest.mark.slow
def test_an_update_reckons_in_float32():
    """The first one uses no rounded number at all."""
    model = tiny.model(d_ff=32)  # fewer shapes, since each operation is compiled for each of them
    params = jax.tree.map(lambda s: jnp.full(s.shape, 0.1), decoder.abstract(model))
    dice = np.random.default_rng(0)
    gradients = jax.tree.map(lambda p: jnp.asarray(dice.standard_normal(p.shape), p.dtype), params)
    updates = []
    for optimizer in (NARROW, dataclasses.replace(NARROW, state_dtype="float32")):
        transform = make_optimizer(optimizer, model)
        updates.append(
            transform.update(gradients, transform.init(params), params)[0]
        )  # op by op: two programs may round apart
    jax.tree.map(np.testing.assert_array_equal, *updates)


@pytest.mark.slow
def test_training_is_hardly_changed_and_the_same_on_a_mesh(trained):
    wide, _ = tiny.train_on_one(10)
    losses, state = trained
    assert all(moment.dtype == jnp.bfloat16 for moment in moments(state))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state["params"]))
    assert losses != wide
    np.testing.assert_allclose(losses, wide, rtol=2e-3)
    sharded, _ = tiny.train(narrow(tiny.config()), 10, cfg.Mesh(fsdp=2), 4)
    np.testing.assert_allclose(sharded, losses, rtol=1e-4)


@pytest.mark.slow
def test_checkpoints_hold_the_narrow_moments_and_convert(trained, tmp_path):
    mesh = make_mesh(cfg.Mesh(), jax.devices()[:1])
    _, state = trained
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, state, {})
    checkpoints.wait()
    step, _ = checkpoints.newest_whole()
    same = checkpoints.read_state(step, train_state.abstract_state(narrow(tiny.config()), mesh))
    jax.tree.map(np.testing.assert_array_equal, same["optimizer"], state["optimizer"])
    wide = checkpoints.read_state(step, train_state.abstract_state(tiny.config(), mesh))
    checkpoints.close()
    assert all(moment.dtype == jnp.float32 for moment in moments(wide))
    for before, after in zip(moments(state), moments(wide), strict=True):
        np.testing.assert_array_equal(np.asarray(before, np.float32), after)
