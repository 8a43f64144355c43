"""Decoding with the cache equals the whole forward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config import schema as cfg
from scaling.model import decoder, kv_cache
from scaling.parallel.mesh import make_mesh, one_device
from tests import tiny

pytestmark = pytest.mark.usefixtures("on_one_device")

TOKENS = np.random.default_rng(0).integers(1, tiny.VOCAB, (2, 16)).astype(np.int32)
MODELS = {
    "pre": {},
    "post": {"norm": "post", "tied_embedding": False},
    "mup": {"parametrization": "mup", "base_width": 16},
    "completep": {"parametrization": "completep", "base_width": 16, "base_depth": 1, "num_layers": 4},
    "wide-band": {"attention_pattern": ("banded", "dense"), "band_width": 9},
    "band-of-one": {"attention_pattern": ("banded",), "band_width": 1},
    **tiny.SWITCHES,
}


def stepwise(network, params, tokens, starts, first, pieces, slots=20):
    """Logits of the real positions: ``first`` slots at once, then a piece of so many slots after the other."""
    layers = kv_cache.split_layers(network, params, one_device())
    prefill = jax.jit(kv_cache.prefill, static_argnums=(0, 4))
    extend = jax.jit(kv_cache.extend, static_argnums=0)
    hidden, memory = prefill(network, layers, tokens[:, :first], starts, slots)
    parts, slot = [hidden], first
    for piece in pieces:
        hidden, memory = extend(network, layers, tokens[:, slot : slot + piece], memory, slot, starts)
        parts.append(hidden)
        slot += piece
    assert slot == tokens.shape[1]
    return decoder.merge_layers(network, layers)[0].logits(np.concatenate(parts, axis=1))


FAST = ("llama", "bloom")
ONES, FIVE = (1,) * 5, (5,)


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in MODELS])
def test_cached_logits_equal_uncached(name):
    network = tiny.network(**MODELS[name])
    params = tiny.parameters(network.model)
    want = tiny.logits(network, params, TOKENS)
    starts = np.zeros(2, np.int32)
    for first, pieces in ((6, ONES + FIVE), (6, FIVE + ONES), (1, FIVE * 3)):
        np.testing.assert_allclose(stepwise(network, params, TOKENS, starts, first, pieces), want, atol=1e-5)


def test_rows_padded_at_the_front_equal_rows_alone():
    network = tiny.network(attention_pattern=("dense", "banded"))
    params = tiny.parameters(network.model)
    starts = np.asarray([3, 0], np.int32)
    padded = TOKENS.copy()
    padded[0, :3] = 7  # anything
    got = stepwise(network, params, padded, starts, 6, ONES * 2)
    for row, start in enumerate(starts):
        alone = tiny.logits(network, params, TOKENS[row : row + 1, start:])[0]
        np.testing.assert_allclose(got[row, start:], alone, atol=1e-5)


def test_bfloat16_keeps_what_is_added_wide():
    network = tiny.network(dtype="bfloat16")
    params = tiny.parameters(network.model)
    layers = kv_cache.split_layers(network, params, one_device())
    assert layers["tokens"].dtype == layers["blocks"][0]["mlp"]["up"].dtype == jnp.bfloat16
    assert layers["positions"].dtype == layers["blocks"][0]["mlp"]["up_bias"].dtype == jnp.float32
    want = tiny.logits(network, params, TOKENS)
    got = stepwise(network, params, TOKENS, np.zeros(2, np.int32), 6, ONES * 2)
    np.testing.assert_allclose(got, want, atol=0.05)


@pytest.mark.slow
def test_cache_and_layers_lie_on_the_mesh_as_in_training():
    network = tiny.network()
    mesh = make_mesh(cfg.Mesh(data=1, fsdp=2, tensor=4))
    with jax.set_mesh(mesh):
        layers = kv_cache.split_layers(network, tiny.parameters(network.model), mesh)
        _, memory = jax.jit(kv_cache.prefill, static_argnums=(0, 4))(network, layers, TOKENS, np.zeros(2, np.int32), 20)
    assert layers["blocks"][1]["attention"]["qkv"].addressable_shards[0].data.shape == (16, 3, 1, 8)
    assert len(memory) == network.model.num_layers
    for x in jax.tree.leaves(memory):
        assert x.shape == (2, 4, 20, 8) and x.addressable_shards[0].data.shape == (1, 1, 20, 8)


def test_the_cache_is_written_in_place():
    """No copy of the cache in the loop of the compiled program: it would cost more than the attention."""
    from scaling.generate import decode
    from scaling.generate.sampling import Sampling, row_keys, rules

    network = tiny.network()
    layers = kv_cache.split_layers(network, tiny.parameters(network.model), one_device())
    static, dials = rules(Sampling(temperature=0.0, end_ids=()), network.model.vocab_size, None)
    rows = decode.Rows(TOKENS, np.zeros(2, np.int32), row_keys(0, np.arange(2), np.arange(2)))
    static = decode.Program(network, static, 16)
    state = decode.start(static, layers, dials, rows)
    program = decode.proceed.lower(static, layers, dials, rows, state, np.int32(16)).compile().as_text()
    assert "f32[2,4,32,8]" in program
    assert not [line for line in program.splitlines() if " = f32[2,4,32,8]" in line and " copy(" in line]


def test_next_logits_are_the_logits_of_the_vocabulary():
    network = tiny.network(parametrization="mup", base_width=16)
    params = tiny.parameters(network.model)
    hidden = np.random.default_rng(1).standard_normal((3, network.model.d_model)).astype(np.float32)
    want = decoder.merge(network, params).logits(hidden[:, None])[:, 0]
    got = kv_cache.next_logits(network, kv_cache.split_layers(network, params, one_device()), hidden, tiny.VOCAB - 2)
    np.testing.assert_allclose(got[:, : tiny.VOCAB - 2], want[:, :-2], atol=1e-5)
    assert got.shape == (3, network.model.padded_vocab) and (got[:, tiny.VOCAB - 2 :] == -jnp.inf).all()
