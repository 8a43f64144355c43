"""Permutation language modelling: orders, the loss against whole logits, several devices, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.catalog import flops, sizes
from scaling.config import schema as cfg
from scaling.config.resolve import resolve
from scaling.data import tokenizer
from scaling.data.batch import Batch
from scaling.data.noise.by_name import noise_of
from scaling.data.noise.permutation import ranks
from scaling.model import decoder
from scaling.model.context import AttentionContext
from scaling.model.two_streams import two_streams
from scaling.objectives.pretraining import pretraining
from scaling.parallel.mesh import make_mesh, one_device
from scaling.parallel.sharding import batch_sharding
from scaling.train import state as train_state
from scaling.train.step import make_train_step
from tests import tiny

WORDS = tokenizer.load("bytes")
XLNET = dict(
    positions="xlnet", causal=False, norm="post", activation="gelu", logit_bias=True, qkv_bias=False, out_bias=False,
    attention_pattern=("dense",), vocab_size=WORDS.vocab_size, token_types=5,
)  # fmt: skip


def config(changes=None, **train):
    found = tiny.config(XLNET | (changes or {}), **train)
    return dataclasses.replace(found, data=cfg.Data(objective="permutation"), noise=cfg.Noise(rate=1 / 6))


def batch(microbatches, rows):
    texts = list(np.random.default_rng(0).integers(0, 256, (microbatches * rows, 17)).astype(np.int32))
    noise = noise_of(config(), WORDS)
    made = [noise(texts, i) for i in range(len(texts))]
    stacked = {
        name: np.stack([getattr(row, name) for row in made]).reshape(microbatches, rows, 16)
        for name in ("tokens", "targets", "weights", "order")
    }
    return Batch(**stacked)


def step(config, mesh, microbatches, rows):
    devices = make_mesh(mesh, jax.devices()[: mesh.devices])
    with jax.set_mesh(devices):
        state = train_state.create_state(config, devices)
        run = make_train_step(config, devices, pretraining(config))
        params = jax.device_get(state["params"])
        placed = jax.device_put(batch(microbatches, rows), batch_sharding(devices))
        state, metrics = run(state, placed, 1e-2, microbatches)
        return params, jax.device_get(state["params"]), jax.device_get(metrics)


@pytest.mark.slow
def test_loss_gradient_microbatches_and_devices():
    whole = config()
    params, after, metrics = step(whole, cfg.Mesh(data=1), 1, 8)
    tokens, targets, weights, order = (
        getattr(batch(1, 8), name)[0] for name in ("tokens", "targets", "weights", "order")
    )

    def loss(params):
        model = decoder.merge(whole.network, params)
        places = jnp.tile(jnp.arange(16), (8, 1))
        hidden = two_streams(model, jnp.asarray(tokens), places, AttentionContext(order=jnp.asarray(order)))
        found = jax.nn.log_softmax(model.logits(hidden))
        return -(weights * jnp.take_along_axis(found, targets[..., None], -1)[..., 0]).sum() / weights.sum()

    with jax.set_mesh(one_device()):
        value, grads = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    norm = np.sqrt(sum(float(jnp.square(g).sum()) for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)
    assert np.abs(grads["query_embedding"]).max() > 0
    for mesh, count in ((cfg.Mesh(data=2, fsdp=2, tensor=2), 1), (cfg.Mesh(data=1), 2)):
        _, other, found = step(config(microbatch_sequences=8 // count), mesh, count, 8 // count)
        np.testing.assert_allclose(found["loss"], metrics["loss"], rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), other, after)


def test_orders_are_drawn_alike_and_again():
    ids, special = np.arange(12, dtype=np.int32), np.array([0, 5], np.int32)
    found = np.stack([ranks(ids, special, 0.3, np.random.default_rng(i)) for i in range(3000)])
    assert not found[:, special].any()
    assert (np.sort(found, axis=1) == [0] * 9 + [1, 2, 3]).all()
    ordinary = np.setdiff1d(ids, special)
    share = (found[:, ordinary] == 2).mean(0)
    assert np.abs(share - 0.1).max() < 3 * np.sqrt(0.1 * 0.9 / 3000) * 1.2
    texts = [np.arange(17, dtype=np.int32) + 40] * 2
    rows = [noise_of(config(), WORDS)(texts, i) for i in (0, 1, 0)]
    np.testing.assert_array_equal(rows[0].order, rows[2].order)
    assert (rows[0].order != rows[1].order).any()
    assert ((rows[0].order > 0) == rows[0].weights).all() and rows[0].weights.sum() == round(16 / 6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.positions": "learned"}, r"model\.positions='learned' must be 'xlnet'"),
        ({"model.causal": True}, r"model\.causal=True must be False with config\.model\.positions='xlnet'"),
        ({"model.layer_groups": 1}, r"model\.layer_groups=1 must be 0 with config\.data\.objective='permutation'"),
        ({"model.attention_pattern": ("banded",)}, r"model\.attention_pattern=.* must be \('dense',\)"),
        ({"model.segment_length": 8}, r"model\.segment_length=8 must be 0 with config\.model\.positions='xlnet'"),
        ({"mesh.context": 2}, r"mesh\.context=2 must be 1 with config\.model\.positions='xlnet'"),
        ({"mesh.stage": 2}, r"mesh\.stage=2 must be 1 with config\.model\.positions='xlnet'"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_what_is_not_built_is_refused(changes, words):
    found = config()
    for name, value in changes.items():
        section, knob = name.split(".")
        found = dataclasses.replace(found, **{section: dataclasses.replace(getattr(found, section), **{knob: value})})
    with pytest.raises(ValueError, match=words):
        pretraining(resolve(found))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"positions": "rotary"}, r"segment_length=4 must be 0 unless config\.model\.positions='transformer_xl'"),
        ({"segment_length": 0}, r"memory_length=4 must be 0 with config\.model\.segment_length=0"),
        ({"segment_length": 5}, r"sequence_length=16 must be a multiple of config\.model\.segment_length=5"),
        ({"experts": cfg.Experts(count=2)}, r"experts\.count=2 must be 0 .* config\.model\.segment_length=4"),
        ({"parametrization": "mup"}, r"parametrization='mup' must be 'standard'"),
        ({"encoder_layers": 1}, r"encoder_layers=1 must be 0"),
        ({"causal": False}, r"causal=False must be True"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_segments_that_cannot_be_are_refused(changes, words):
    plain = dict(positions="transformer_xl", attention_pattern=("dense",), segment_length=4, memory_length=4)
    with pytest.raises(ValueError, match=words):
        resolve(tiny.config(plain | changes))


def test_flops_count_distances_memories_and_the_query_stream():
    plain = tiny.model(positions="transformer_xl", attention_pattern=("dense",))
    # 4 heads of 8 features in 2 layers; three products with each of the (16 + 1) / 2 positions that a token sees.
    assert flops.attention_per_token(plain, 16) == 2 * 6 * 4 * 8 * 8.5
    memory = dataclasses.replace(plain, segment_length=4, memory_length=6)
    # Segments of 4 after 0, 4, 6 and 6 states; keys and values are made of those, too.
    assert flops.attention_per_token(memory, 16) == 2 * 6 * 4 * 8 * (2.5 + 16 / 4)
    products = 2 * sizes.parameters(plain).chinchilla + 2 * 2 * 2 * 32 * 32 * 16 / 16
    assert flops.forward_per_token(memory, 16) == products + flops.attention_per_token(memory, 16)
    found = config()
    counted = sizes.parameters(found.model)
    once = flops.training_per_token(found.model, 16, 1 / 6)
    again = 2 * (counted.matrices - 2 * 2 * 32 * 32) + 2 * 6 * 32 * 16
    assert flops.of_pretraining(found) == pytest.approx(once + 3 / 6 * again)
