"""Adapters: the first step is the base's, gradients are those of whole weights, meshes and sums change nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from scaling.config import schema as cfg
from scaling.model import decoder, lora
from scaling.objectives.next_token import next_token
from scaling.parallel.mesh import make_mesh, one_device
from scaling.parallel.sharding import batch_sharding
from scaling.plan.compiled import compile_step
from scaling.train import state as train_state
from scaling.train.schedule import BatchSchedule
from scaling.train.step import make_eval_step, make_train_step
from tests import tiny

RANK, ALPHA = 3, 6.0
SHAPES = {"gpt3": {}, "llama": tiny.SWITCHES["llama"], "glam": tiny.SWITCHES["glam"]}
ROWS = 4  # of new tokens


def config(changes=None, mesh=None, optimizer=None, **train):
    made = tiny.config(changes, **train)
    adapters = cfg.Lora(rank=RANK, alpha=ALPHA, first_new_token=made.model.vocab_size - ROWS)
    optimizer = dataclasses.replace(made.optimizer, **(optimizer or {}))
    return dataclasses.replace(made, lora=adapters, mesh=mesh or cfg.Mesh(), optimizer=optimizer)


@functools.cache
def base_of(model):
    return jax.device_get(decoder.initialize(model, jax.random.key(7)))


def begun(config, mesh=None):
    """The base and the state on a mesh."""
    mesh = mesh or one_device()
    base = jax.device_put(base_of(config.model), decoder.shardings(config.model, mesh))
    return base, train_state.create_state(config, mesh, base)


def moved(params):
    """Adapters whose B is not zero any more."""
    dice = np.random.default_rng(1)
    return jax.tree.map(lambda x: np.asarray(x) + 0.1 * dice.standard_normal(x.shape, np.float32), params)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_the_first_step_is_the_base_bit_by_bit(shape):
    made = config(SHAPES[shape])
    base, state = begun(made)
    jax.tree.map(
        np.testing.assert_array_equal, jax.jit(functools.partial(lora.whole, made))(state["params"], base), base
    )
    plain = dataclasses.replace(made, lora=cfg.Lora())
    with jax.set_mesh(one_device()):
        batch = jax.device_put(tiny.batch(0), batch_sharding(one_device()))
        adapted, alone = (make_eval_step(c, one_device(), next_token(c)) for c in (made, plain))
        assert adapted(state["params"], batch, base=base).objective == alone(base, batch).objective


def test_without_adapters_nothing_is_new():
    plain = tiny.config()
    assert lora.abstract(plain.model, plain.lora) == decoder.abstract(plain.model)
    params = {"tokens": jnp.zeros(3)}
    assert lora.whole(plain, params, None) is params


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_whole_weights_by_the_chain_rule(shape):
    """W + s A B: dA is s dW B', and dB is s A' dW; as matrices of inputs and outputs, layer by layer."""
    made = config(SHAPES[shape])
    base, state = begun(made)
    params, objective = moved(state["params"]), next_token(made)
    batch = jax.tree.map(lambda x: x[0], tiny.batch(0))
    with jax.set_mesh(one_device()):

        def loss(whole):
            return objective(decoder.merge(made.network, whole), None, batch, None).objective

        found = jax.jit(jax.grad(lambda params: loss(lora.whole(made, params, base))))(params)
        whole = jax.jit(jax.grad(loss))(lora.whole(made, params, base))
    flat = {k: np.asarray(v) for k, v in nnx.traversals.flatten_mapping(found).items()}
    own = {k: np.asarray(v) for k, v in nnx.traversals.flatten_mapping(params).items()}
    gradients = nnx.traversals.flatten_mapping(whole)
    matrices = lora.adapted(made.model, made.lora)
    assert len(matrices) == {"gpt3": 6, "llama": 7, "glam": 2 * 4 + 3 + 2}[shape]
    for matrix in matrices:
        inputs, outputs = matrix.sides
        gradient = np.asarray(gradients[matrix.path]).reshape(-1, inputs, outputs)
        a, b = own[*matrix.path, "a"].reshape(-1, inputs, RANK), own[*matrix.path, "b"].reshape(-1, RANK, outputs)
        for name, expected in (("a", gradient @ b.swapaxes(1, 2)), ("b", a.swapaxes(1, 2) @ gradient)):
            got = flat[*matrix.path, name].reshape(expected.shape)
            np.testing.assert_allclose(got, ALPHA / RANK * expected, rtol=1e-4, atol=1e-4, err_msg=str(matrix.path))
    known = made.model.vocab_size
    np.testing.assert_allclose(flat["rows", "tokens"], whole["tokens"][known - ROWS : known], rtol=1e-5, atol=1e-6)


def trained(made, devices=1, steps=3):
    mesh, schedule = make_mesh(made.mesh, jax.devices()[:devices]), BatchSchedule.from_config(made.train)
    count, size, losses = schedule.max_microbatches, schedule.microbatch, []
    with jax.set_mesh(mesh):
        base, state = begun(made, mesh)
        step = make_train_step(made, mesh, next_token(made))
        for i in range(steps):
            data = jax.device_put(tiny.batch(i, count, size), batch_sharding(mesh))
            state, metrics = step(state, data, 1e-2, count, base=base)
            losses.append(float(metrics["loss"]))
        jax.tree.map(np.testing.assert_array_equal, base, base_of(made.model))  # not donated, and not changed
    return losses, jax.device_get(state["params"])


@functools.cache
def trained_alone():
    return trained(config())


MESHES = {
    "microbatches": (dict(microbatch_sequences=2), cfg.Mesh(), 1),
    "fsdp and tensor": ({}, cfg.Mesh(data=1, fsdp=2, tensor=2), 4),
    "scattered gradients": ({}, cfg.Mesh(data=2, fsdp=2, shard_optimizer=True), 4),
    "stages": (dict(pipeline_microbatches=2), cfg.Mesh(data=1, stage=2), 2),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_microbatches_and_devices_change_nothing(name):
    train, mesh, devices = MESHES[name]
    changes = {"attention_pattern": ("dense",)} if mesh.stage > 1 else None  # whole periods lie in a stage
    losses, params = trained(config(changes, mesh, **train), devices)
    expected, same = trained_alone() if changes is None else trained(config(changes))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-4), params, same)
    assert expected[-1] != expected[0]


@pytest.mark.slow
def test_adapters_lie_like_the_sides_of_their_matrix():
    made = config({}, cfg.Mesh(data=1, fsdp=2, tensor=2))
    mesh = make_mesh(made.mesh, jax.devices()[:4])
    attention = begun(made, mesh)[1]["params"]["blocks"]["attention"]
    shards = {name: attention["out"][name].addressable_shards[0].data.shape for name in "ab"}
    assert shards == {"a": (2, 2, 8, RANK), "b": (2, RANK, 16)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["muon", "adafactor", "lion"])
def test_optimizers_of_optax_take_adapters(name):
    made = config(optimizer={"name": name, "peak_lr": 1e-3})
    losses, params = trained(made, steps=2)
    assert np.isfinite(losses).all() and np.abs(params["blocks"]["mlp"]["down"]["b"]).max() > 0


@pytest.mark.slow
def test_decay_is_that_of_matrices_and_tables():
    made = config(optimizer={"weight_decay": 0.5})
    _, state = begun(made)
    optimizer = train_state.make_optimizer(made.optimizer, made.model, made.lora)
    zeros = jax.tree.map(jnp.zeros_like, state["params"])
    updates, _ = jax.jit(optimizer.update)(zeros, optimizer.init(state["params"]), state["params"])
    assert optax.tree.norm(jax.tree.map(lambda u, p: u + 0.5 * p, updates, state["params"])) < 1e-6


def test_the_state_holds_no_more_than_adapters_and_rows():
    made = config()
    state = train_state.abstract_state(made, one_device())
    model = made.model
    sides = [sum(matrix.sides) for matrix in lora.adapted(model, made.lora)]
    assert train_state.parameter_count(state["params"]) == 2 * RANK * sum(sides) + ROWS * model.d_model
    assert train_state.parameter_count(state["optimizer"]) < 2.1 * train_state.parameter_count(state["params"])


@pytest.mark.slow
def test_a_plan_counts_the_base():
    """The compiled step takes the base, which is no part of the state."""
    made = dataclasses.replace(config(), eval=cfg.Eval(batch_sequences=8))
    memory = compile_step(made, jax.devices()[:1]).memory
    assert memory.params > 4 * train_state.parameter_count(decoder.abstract(made.model))
    assert memory.optimizer < memory.params / 2
    assert compile_step(made, jax.devices()[:1], "eval").memory.params == memory.params


WRONG = {
    "at most 16": (dict(rank=17), dict(num_kv_heads=2)),
    "must name a matrix": (dict(rank=2, matrices=("gate",)), {}),
    "at most 50, the size": (dict(rank=2, first_new_token=51), {}),
}


@pytest.mark.parametrize("right", WRONG)
def test_adapters_that_the_model_cannot_have(right):
    adapters, changes = WRONG[right]
    made = dataclasses.replace(tiny.config(changes), lora=cfg.Lora(**{"first_new_token": 50} | adapters))
    with pytest.raises(ValueError, match=right):
        lora.check(made)
