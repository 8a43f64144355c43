"""Relative attention and recurrence of Transformer-XL, and XLNet's two streams, against loops over i and j."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config import schema as cfg
from scaling.model import decoder
from scaling.model.context import AttentionContext
from scaling.model.two_streams import two_streams
from tests import tiny
from tests import transformer_xl_by_hand as by_hand

pytestmark = pytest.mark.usefixtures("on_one_device")

XL = dict(
    positions="transformer_xl", attention_pattern=("dense",), norm="post", activation="relu", num_kv_heads=2,
    qkv_bias=False, out_bias=False, d_model=16, num_heads=4, d_head=6, d_ff=24,
)  # fmt: skip
XLNET = XL | dict(positions="xlnet", causal=False, token_types=5, num_kv_heads=0)
TOKENS = np.random.default_rng(0).integers(1, tiny.VOCAB, (2, 12)).astype(np.int32)


def parameters(network):
    return tiny.parameters(network.model, 0.2)


def hidden(network, params, tokens=TOKENS, **context):
    return decoder.merge(network, params)(tokens, AttentionContext(**context))


def layers(network, params):
    blocks = jax.tree.map(np.float64, params["blocks"])
    return [jax.tree.map(lambda x, i=i: x[i], blocks) for i in range(network.model.num_layers)]


@pytest.mark.slow
@pytest.mark.parametrize(("segment", "memory"), [(0, 0), (4, 0), (4, 3), (4, 4), (5, 12)])
def test_states_are_those_of_the_papers_formulas(segment, memory):
    network = tiny.network(**XL, segment_length=segment, memory_length=memory)
    params = parameters(network)
    ours = np.asarray(hidden(network, params))
    for row, tokens in enumerate(TOKENS):
        x = np.float64(params["tokens"])[tokens]
        want = by_hand.transformer_xl(layers(network, params), x, segment or 12, memory, network.model.norm_epsilon)
        assert np.abs(ours[row] - want).max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_memory_that_reaches_as_far_equals_one_long_segment(norm):
    whole = tiny.network(**XL | {"norm": norm})
    params = parameters(whole)
    segments = tiny.network(**XL | {"norm": norm}, segment_length=4, memory_length=8)
    np.testing.assert_allclose(hidden(segments, params), hidden(whole, params), atol=1e-5)
    documents = np.sort(np.random.default_rng(1).integers(0, 3, TOKENS.shape), axis=1).astype(np.int32)
    there = dict(segments=documents)
    np.testing.assert_allclose(hidden(segments, params, **there), hidden(whole, params, **there), atol=1e-5)
    short = tiny.network(**XL | {"norm": norm}, segment_length=4, memory_length=4)
    first, second = hidden(short, params), hidden(whole, params)
    np.testing.assert_allclose(first[:, :8], second[:, :8], atol=1e-5)
    assert np.abs(first[:, 8:] - second[:, 8:]).max() > 1e-3


def test_no_gradient_flows_into_the_memory():
    network = tiny.network(**XL, segment_length=4, memory_length=8, remat="full")
    model = decoder.merge(network, parameters(network))

    def last(x):
        return jnp.square(model.through(x, AttentionContext())[0][:, 8:]).sum()

    grad = jax.grad(last)(model.embed(TOKENS))
    assert not grad[:, :8].any() and grad[:, 8:].any()


def test_branches_are_read_as_texts_of_their_own():
    network = tiny.network(**XL)
    params = parameters(network)
    row = np.concatenate([TOKENS[:1], TOKENS[1:, :4]], axis=1)
    branches = np.repeat([0, 1, 2], [6, 6, 4])[None].astype(np.int32)
    positions = np.concatenate([np.arange(12), np.arange(6, 10)])[None].astype(np.int32)
    ours = hidden(network, params, row, positions=positions, branches=branches)
    other = np.concatenate([TOKENS[:1, :6], TOKENS[1:, :4]], axis=1)
    np.testing.assert_allclose(ours[:, :12], hidden(network, params, TOKENS[:1]), atol=1e-5)
    np.testing.assert_allclose(ours[:, 12:], hidden(network, params, other)[:, 6:], atol=1e-5)


@pytest.mark.slow
def test_devices_and_accumulation_change_nothing():
    changes = XL | dict(segment_length=4, memory_length=6, d_head=8, remat="dots")
    alone, _ = tiny.train(tiny.config(changes), 3)
    mesh = cfg.Mesh(data=2, fsdp=2, tensor=2)
    np.testing.assert_allclose(tiny.train(tiny.config(changes), 3, mesh, 8)[0], alone, rtol=1e-5)
    np.testing.assert_allclose(tiny.train(tiny.config(changes, microbatch_sequences=4), 3)[0], alone, rtol=1e-5)


@pytest.mark.slow
def test_dropout_is_the_same_on_every_mesh():
    changes = XL | dict(segment_length=4, memory_length=4, d_head=8, dropout_residual=0.1, dropout_attention=0.1)
    alone, _ = tiny.train(tiny.config(changes), 2)
    np.testing.assert_allclose(tiny.train(tiny.config(changes), 2, cfg.Mesh(data=8), 8)[0], alone, rtol=1e-5)


ORDERS = {
    "identity": np.tile(np.arange(12, dtype=np.int32), (2, 1)),
    "random": np.argsort(np.random.default_rng(3).random((2, 12)), axis=1).astype(np.int32),
    "partial": np.maximum(0, np.argsort(np.random.default_rng(4).random((2, 12)), axis=1) - 7).astype(np.int32),
}


def streams(network, params, order, tokens=TOKENS, places=None, **context):
    places = np.tile(np.arange(12, dtype=np.int32), (2, 1)) if places is None else places
    model = decoder.merge(network, params)
    return two_streams(model, jnp.asarray(tokens), jnp.asarray(places), AttentionContext(order=order, **context))


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_the_query_stream_is_that_of_the_papers_formulas(order):
    network = tiny.network(**XLNET)
    params = parameters(network)
    types = np.random.default_rng(5).integers(0, 2, TOKENS.shape).astype(np.int32)
    ours = np.asarray(streams(network, params, order, types=types))
    w = np.float64(params["query_embedding"])
    for row, tokens in enumerate(TOKENS):
        x = np.float64(params["tokens"])[tokens]
        want = by_hand.query_stream(layers(network, params), x, w, order[row], types[row], network.model.norm_epsilon)
        later = order[row] > 0
        assert np.abs(ours[row] - want)[later].max() < 1e-5


def test_in_the_order_of_the_text_the_content_stream_is_a_causal_decoder():
    network, params = tiny.network(**XLNET), parameters(tiny.network(**XLNET))
    causal = tiny.network(**XLNET | dict(positions="transformer_xl", causal=True, token_types=0))
    ours = hidden(network, params, order=ORDERS["identity"])
    relative = {k: v for k, v in params["blocks"]["attention"]["relative"].items() if not k.startswith("type")}
    attention = params["blocks"]["attention"] | {"relative": relative}
    plain = params | {"blocks": params["blocks"] | {"attention": attention}}
    del plain["query_embedding"]
    np.testing.assert_allclose(ours, hidden(causal, plain), atol=1e-5)


def test_the_query_stream_sees_neither_itself_nor_what_comes_later_in_the_order():
    network, order = tiny.network(**XLNET), ORDERS["random"]
    params = parameters(network)
    before = streams(network, params, order)
    for place in range(0, 12, 5):
        other = TOKENS.copy()
        other[:, place] = (other[:, place] + 7) % tiny.VOCAB
        change = np.abs(streams(network, params, order, other) - before).max(-1)
        sees = order > order[:, [place]]
        assert (change[sees] > 1e-4).all() and not change[~sees & (order > 0)].any()


def test_partial_prediction_computes_the_same_states():
    network, order = tiny.network(**XLNET), ORDERS["partial"]
    params = parameters(network)
    places = np.argsort(-order, axis=1)[:, :4].astype(np.int32)
    whole = streams(network, params, order)
    few = streams(network, params, order, places=places)
    np.testing.assert_allclose(few, np.take_along_axis(np.asarray(whole), places[..., None], 1), atol=1e-5)
