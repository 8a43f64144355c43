"""Weights and caches in 8 bits: exact where 8 bits suffice, else as wrong as rounding explains; alike in pieces."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config import schema as cfg
from scaling.generate.continuous import Engine, Text
from scaling.generate.draft import Draft
from scaling.generate.generator import Generator
from scaling.generate.sampling import Sampling
from scaling.model import decoder, kv_cache
from scaling.model.layers import Parameter
from scaling.model.quantized import project
from scaling.model.rounded import Rounded, rounded, rounded_axes, wide
from scaling.parallel.mesh import make_mesh, one_device
from tests import tiny
from tests.model.test_kv_cache import TOKENS, stepwise

pytestmark = pytest.mark.usefixtures("on_one_device")

# Shapes of activations and weights, logical axes of the weights: every product of a block.
PRODUCTS = {
    "qkv": ((2, 3, 16), (16, 3, 2, 4), ("embed", None, "heads", None)),
    "out": ((2, 3, 16), (16, 12), ("heads", "embed")),
    "down": ((2, 3, 24), (24, 12), ("mlp", "embed")),
}
PROMPTS = [[5, 17, 3, 40, 22], [8, 9], [1], [33, 2, 7, 11, 40, 6, 21]]
GREEDY = Sampling(tokens=9, temperature=0.0, end_ids=())


def in_8_bits(w, axes):
    return Parameter(rounded(w, (0,)), axes=axes)


@pytest.mark.parametrize("name", PRODUCTS)
def test_what_8_bits_hold_is_exact(name):
    """Whole numbers up to 127 times a power of two for each channel, which bfloat16 holds, too."""
    shape, of_weights, axes = PRODUCTS[name]
    rng = np.random.default_rng(0)
    numbers = rng.integers(-127, 128, of_weights)
    numbers[0] = 127
    w = numbers * 2.0 ** rng.integers(-9, 9, of_weights[1:])
    x = rng.integers(-4, 5, shape)
    want = np.tensordot(x, w, 1)
    got = project(jnp.asarray(x, jnp.float32), in_8_bits(jnp.asarray(w), axes), "none")
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, want)
    narrow = project(jnp.asarray(x, jnp.bfloat16), in_8_bits(jnp.asarray(w), axes), "none")
    np.testing.assert_allclose(narrow, want, rtol=2**-7)  # the result is rounded before its scale and after it


@pytest.mark.parametrize("name", PRODUCTS)
def test_no_product_is_further_off_than_rounding(name):
    """Each weight by at most half a step, 1/254 of the largest of its channel; channels of very different size."""
    shape, of_weights, axes = PRODUCTS[name]
    rng = np.random.default_rng(1)
    x = rng.normal(size=shape).astype(np.float32)
    w = rng.normal(size=of_weights) * np.logspace(-4, 4, of_weights[-1])
    got = project(jnp.asarray(x), in_8_bits(jnp.asarray(w, jnp.float32), axes), "none")
    off = np.abs(got - np.tensordot(x, w, 1))
    bound = np.multiply.outer(np.abs(x).sum(-1), np.abs(w).max(0) / 254)
    assert (off <= 1.001 * bound).all() and off.max() > 0
    assert (off / bound).mean() < 0.2  # errors of many weights cancel each other


def test_zeros_stay_zeros_and_twice_is_once():
    x = np.random.default_rng(2).normal(size=(6, 5)).astype(np.float32)
    x[:, 2] = 0
    once = rounded(jnp.asarray(x), (0,))
    again = rounded(wide(once, (0,), jnp.float32), (0,))
    np.testing.assert_array_equal(once.values, again.values)
    np.testing.assert_allclose(once.scale, again.scale, rtol=1e-6)
    assert once.values.dtype == jnp.int8 and (once.values[:, 2] == 0).all() and once.scale[2] == 0
    assert (jnp.abs(once.values).max(0)[jnp.asarray([0, 1, 3, 4])] == 127).all()
    assert rounded_axes(("heads", None, "embed"), (0, 1)) == Rounded(("heads", None, "embed"), ("embed",))


def test_what_is_in_8_bits():
    """All that a token reads: matrices of blocks and both tables; neither router nor what is added."""
    for switches in ({}, tiny.SWITCHES["llama"], tiny.SWITCHES["glam"]):
        network = tiny.network(decode_int8="weights", **switches)
        shapes = kv_cache.abstract_layers(network, one_device())
        leaves = jax.tree.leaves_with_path(shapes)
        names = {path[-1].key for path, x in leaves if x.ndim > 1 and hasattr(path[-1], "key")}
        assert names <= {"positions", "router", "qkv_bias"}
        assert {x.dtype.name for path, x in leaves if getattr(path[-1], "name", "") == "values"} == {"int8"}
        made = kv_cache.split_layers(network, decoder.initialize(network.model, jax.random.key(0)), one_device())
        assert jax.tree.map(lambda x: (x.shape, x.dtype), made) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)


FAST = ("llama", "mixtral")
NAMES = ["plain", *tiny.SWITCHES]


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_in_pieces_as_in_one(name):
    """Scoring, which rounds the same numbers and computes with them wide, says what decoding says."""
    network = tiny.network(decode_int8="both", **tiny.SWITCHES.get(name, {}))
    params = tiny.parameters(network.model)
    module = decoder.merge(network, kv_cache.in_8_bits(network, params, one_device()))
    want = module.logits(module(TOKENS))
    starts = jnp.zeros(2, jnp.int32)
    for first, pieces in ((6, (1,) * 10), (1, (5,) * 3)):
        got = stepwise(network, params, TOKENS, starts, first, pieces)
        # Where a sum rounds otherwise, a key may become the next of the 255 numbers.
        assert np.abs(got - want).max() < 0.01 * np.abs(want).max() and np.median(np.abs(got - want)) < 1e-5
    plain = tiny.network(**tiny.SWITCHES.get(name, {}))
    exact = decoder.merge(plain, params)
    off = jnp.linalg.norm(want - exact.logits(exact(TOKENS))) / jnp.linalg.norm(want)
    assert 1e-4 < off < 0.03


def test_a_cache_is_off_by_half_a_step_of_each_token_and_head():
    network, plain = tiny.network(decode_int8="cache"), tiny.network()
    params, starts = tiny.parameters(plain.model), jnp.zeros(2, jnp.int32)
    prefill = jax.jit(kv_cache.prefill, static_argnums=(0, 4))
    caches = [
        prefill(each, kv_cache.split_layers(each, params, one_device()), TOKENS, starts, 20)[1][0]
        for each in (network, plain)
    ]
    for narrow, exact in zip(*caches, strict=True):
        assert narrow.values.dtype == jnp.int8 and narrow.scale.shape == exact.shape[:3] == (2, 4, 20)
        largest = jnp.abs(exact).max(-1, keepdims=True)
        off = jnp.abs(wide(narrow, (3,), jnp.float32) - exact)
        assert (off <= 1.001 * largest / 254).all() and off.max() > 0
        assert not narrow.values[:, :, 16:].any() and not narrow.scale[:, :, 16:].any()


@functools.cache
def models(name, int8="both", seed=0):
    network = tiny.network(decode_int8=int8, **tiny.SWITCHES.get(name, {}))
    params = decoder.initialize(network.model, jax.random.key(seed))
    return network, jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, params)


def texts(found):
    return [completions[0].ids for completions in found]


@pytest.mark.parametrize("name", ["llama", pytest.param("plain", marks=pytest.mark.slow)])
def test_texts_are_alike_in_batches_on_meshes_and_with_a_draft(name):
    network, params = models(name)
    alone = Generator(network, params, None)
    want = texts(alone.generate(PROMPTS, GREEDY, batch_size=1))
    assert texts(alone.generate(PROMPTS, GREEDY)) == want
    mesh = make_mesh(cfg.Mesh(data=2, fsdp=2, tensor=2))
    sharded = Generator(network, params, None, mesh)
    assert sharded.params["blocks"][0]["mlp"]["up"].values.addressable_shards[0].data.shape == (16, 64)
    assert texts(sharded.generate(PROMPTS, GREEDY)) == want
    assert texts(Generator(network, params, None, draft=Draft(*models(name, seed=1))).generate(PROMPTS, GREEDY)) == want
    engine, given = Engine(alone, 2), [[] for _ in PROMPTS]
    engine.submit([Text(np.asarray(p), GREEDY, 0, out.append) for p, out in zip(PROMPTS, given, strict=True)])
    while engine.busy:
        engine.step()
    assert [out[-1].ids for out in given] == want
    beams = dataclasses.replace(GREEDY, beams=2, temperature=1.0)
    one = texts(alone.generate(PROMPTS, beams, batch_size=2))
    assert one == texts(alone.generate(PROMPTS, beams, batch_size=8))
