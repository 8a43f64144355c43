"""``mesh.shard_optimizer``: gradients and moments are cut over the replicas, and the numbers stay the same."""

import dataclasses

import jax
import numpy as np
import pytest

from scaling.config import schema as cfg
from scaling.config.resolve import resolve
from scaling.parallel import sharding
from scaling.parallel.mesh import make_mesh
from scaling.train import state as train_state
from tests import tiny

STEPS = 6
MESHES = {
    "data8": cfg.Mesh(data=8),
    "data2-fsdp2-tensor2": cfg.Mesh(data=2, fsdp=2, tensor=2),
    "slices2-data2-fsdp2": cfg.Mesh(slices=2, data=2, fsdp=2),
}


def on(mesh, **train):
    return dataclasses.replace(tiny.config(**train), mesh=dataclasses.replace(mesh, shard_optimizer=True))


@pytest.fixture(scope="module")
def one_device():
    return tiny.train_on_one(STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_same_losses_and_weights_as_one_device(name, one_device):
    config = on(MESHES[name])
    losses, state = tiny.train(config, STEPS, config.mesh, 8)
    np.testing.assert_allclose(losses, one_device[0], rtol=1e-6)
    for got, want in zip(jax.tree.leaves(state["params"]), jax.tree.leaves(one_device[1]["params"]), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-3)  # Adam divides rounding by rounding where gradients vanish


@pytest.mark.slow
def test_accumulation_equals_the_large_batch(one_device):
    config = on(cfg.Mesh(data=2, fsdp=2), microbatch_sequences=4)
    losses, _ = tiny.train(config, STEPS, config.mesh, 4)
    np.testing.assert_allclose(losses, one_device[0], rtol=2e-6)


def test_each_replica_holds_its_part_of_the_moments():
    mesh = make_mesh(cfg.Mesh(data=2, fsdp=2, tensor=2))
    state = train_state.create_state(on(cfg.Mesh(data=2, fsdp=2, tensor=2)), mesh)
    weight = state["params"]["blocks"]["mlp"]["up"]
    assert weight.addressable_shards[0].data.shape == (2, 16, 64)  # of (2, 32, 128)
    for moments in (state["optimizer"][2].mu, state["optimizer"][2].nu):
        moment = moments["blocks"]["mlp"]["up"]
        assert moment.addressable_shards[0].data.shape == (2, 8, 64)
        # Inside the device's own shard of the weight, so that nothing but the update travels.
        for mine, whole in zip(moment.addressable_shards, weight.addressable_shards, strict=True):
            assert mine.device == whole.device
            assert whole.index[1].start <= mine.index[1].start < mine.index[1].stop <= whole.index[1].stop
        assert moments["tokens"].addressable_shards[0].data.shape == (28, 8)  # of 56 rows of 32
        assert moments["blocks"]["mlp"]["up_bias"].sharding == state["params"]["blocks"]["mlp"]["up_bias"].sharding


def test_gradients_are_asked_for_in_the_smaller_shards():
    axes = ("embed", "mlp")

    def loss(w, x):
        return jax.numpy.square(x @ sharding.gathered(w, axes)).sum()

    def asked(on):
        with jax.set_mesh(make_mesh(cfg.Mesh(fsdp=2))), sharding.scattered_gradients(on):
            program = jax.make_jaxpr(jax.grad(loss))(np.ones((64, 32), np.float32), np.ones((8, 64), np.float32))
        return [e.params["sharding"].spec for e in program.jaxpr.eqns if e.primitive.name == "sharding_constraint"]

    assert asked(True) == [jax.sharding.PartitionSpec(("fsdp", "expert", "context", "data"), "tensor")]
    assert asked(False) == [sharding.stored_spec(axes)]


def test_a_width_that_does_not_divide_is_refused():
    config = dataclasses.replace(on(cfg.Mesh(data=8)), model=tiny.model(d_model=36, num_heads=4, d_head=9))
    with pytest.raises(ValueError, match=r"mesh.shard_optimizer=True .*config.model.d_model=36 .*8 replicas"):
        resolve(config)
    resolve(dataclasses.replace(config, mesh=cfg.Mesh(data=8)))
