"""Masked language modelling against whole logits, and on several devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config import schema as cfg
from scaling.data import tokenizer
from scaling.data.batch import Batch, filled
from scaling.data.noise.by_name import noise_of
from scaling.model import decoder
from scaling.model.context import AttentionContext
from scaling.objectives.pretraining import pretraining
from scaling.parallel.mesh import make_mesh, one_device
from scaling.parallel.sharding import batch_sharding
from scaling.train import state as train_state
from scaling.train.step import make_train_step
from tests import tiny

WORDS = tokenizer.load("bytes+mask")
ENCODER = dict(
    causal=False, norm="post", activation="gelu", embedding_norm=True, token_types=2, logit_bias=True,
    head_transform=True, attention_pattern=("dense",), vocab_size=WORDS.vocab_size,
)  # fmt: skip


def config(changes=None, **train):
    found = tiny.config(ENCODER | (changes or {}), **train)
    return cfg.Config(
        model=found.model, compute=found.compute, data=cfg.Data(objective="mlm"), train=found.train,
        optimizer=found.optimizer,
    )  # fmt: skip


def batch(microbatches, rows):
    texts = list(np.random.default_rng(0).integers(0, 256, (microbatches * rows, 16)).astype(np.int32))
    noise = noise_of(config(), WORDS)
    made = [noise(texts, i) for i in range(len(texts))]
    fields = [np.stack([row[i] for row in made]).reshape(microbatches, rows, 16) for i in range(3)]
    return Batch(*fields)


def step(config, mesh, microbatches, rows):
    devices = make_mesh(mesh, jax.devices()[: mesh.devices])
    with jax.set_mesh(devices):
        state = train_state.create_state(config, devices)
        run = make_train_step(config, devices, pretraining(config))
        placed = jax.device_put(batch(microbatches, rows), batch_sharding(devices))
        before = jax.device_get(state["params"])
        state, metrics = run(state, placed, 1e-2, microbatches)
        return before, jax.device_get(state["params"]), jax.device_get(metrics)


@pytest.mark.slow
def test_loss_and_gradient_are_those_of_whole_logits():
    whole = config()
    params, _, metrics = step(whole, cfg.Mesh(data=1), 1, 8)
    tokens, targets, weights = (x[0] for x in batch(1, 8)[:3])

    def loss(params):
        model = decoder.merge(whole.network, params)
        found = jax.nn.log_softmax(model.logits(model(tokens)))
        return -(weights * jnp.take_along_axis(found, targets[..., None], -1)[..., 0]).sum() / weights.sum()

    with jax.set_mesh(one_device()):
        value, grads = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    norm = np.sqrt(sum(float(jnp.square(g).sum()) for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)
    assert all(np.abs(grads[name]).max() > 0 for name in ("transform", "transform_bias", "logit_bias", "types"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "microbatches"),
    [(cfg.Mesh(data=1), 2), (cfg.Mesh(data=1, fsdp=2, tensor=2), 1), (cfg.Mesh(data=8), 1)],
    ids=["microbatches", "fsdp and tensor", "data"],
)
def test_microbatches_and_devices_change_nothing(mesh, microbatches):
    _, one, expected = step(config(), cfg.Mesh(data=1), 1, 8)
    rows = 8 // microbatches
    _, other, found = step(config(microbatch_sequences=rows), mesh, microbatches, rows)
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)
    np.testing.assert_allclose(found["grad_norm"], expected["grad_norm"], rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), one, other)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_devices_change_nothing_with_disentangled_positions(shared):
    by = cfg.Disentangled(distance=12, buckets=8, norm=True, absolute=True, shared=shared)
    chosen = config({"positions": "disentangled", "disentangled": by})
    _, one, expected = step(chosen, cfg.Mesh(data=1), 1, 8)
    _, other, found = step(chosen, cfg.Mesh(data=2, fsdp=2, tensor=2), 1, 8)
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)
    np.testing.assert_allclose(found["grad_norm"], expected["grad_norm"], rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), one, other)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [cfg.Mesh(data=1), cfg.Mesh(data=2, fsdp=2, tensor=2)], ids=["one", "eight"])
@pytest.mark.parametrize("microbatches", [1, 2])
def test_two_losses_are_those_of_whole_logits(mesh, microbatches):
    rows = 8 // microbatches
    whole = config(microbatch_sequences=rows)
    model = dataclasses.replace(whole.model, pooler=True, pair_head=True)
    whole = dataclasses.replace(whole, model=model, data=cfg.Data(objective="mlm_nsp"))
    texts = list(np.random.default_rng(0).integers(0, 256, (8, 14)).astype(np.int32))
    noise = noise_of(whole, WORDS)
    made = [noise(texts, i) for i in range(8)]
    placed = filled((microbatches, rows), {divmod(i, rows): row for i, row in enumerate(made)})
    devices = make_mesh(mesh, jax.devices()[: mesh.devices])
    with jax.set_mesh(devices):
        state = train_state.create_state(whole, devices)
        params = jax.device_get(state["params"])
        run = make_train_step(whole, devices, pretraining(whole))
        _, metrics = run(state, jax.device_put(placed, batch_sharding(devices)), 1e-2, microbatches)
    tokens, targets, weights, types = (
        np.stack([getattr(row, name) for row in made]) for name in ("tokens", "targets", "weights", "types")
    )
    labels = np.array([int(row.labels[0]) for row in made])

    def losses(params):
        model = decoder.merge(whole.network, params)
        hidden = model(tokens, AttentionContext(types=types))
        found = jax.nn.log_softmax(model.logits(hidden))
        lm = -(weights * jnp.take_along_axis(found, targets[..., None], -1)[..., 0]).sum() / weights.sum()
        return lm, -jax.nn.log_softmax(model.pair_logits(hidden[:, 0]))[np.arange(8), labels].mean()

    with jax.set_mesh(one_device()):
        (lm, pairs), grads = jax.jit(losses)(params), jax.jit(jax.grad(lambda p: sum(losses(p))))(params)
    np.testing.assert_allclose([metrics["loss"], metrics["pair_loss"]], [lm, pairs], rtol=1e-5)
    norm = np.sqrt(sum(float(jnp.square(g).sum()) for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)


def test_an_encoder_predicts_hidden_tokens_and_a_decoder_the_next_one():
    plain = tiny.config()
    for model, objective, right in ((ENCODER, "next_token", "True"), ({}, "mlm", "False")):
        wrong = cfg.Config(model=tiny.config(model).model, data=cfg.Data(objective=objective), train=plain.train)
        with pytest.raises(ValueError, match=rf"config\.model\.causal=.* must be {right} with config\.data\.objective"):
            pretraining(wrong)
