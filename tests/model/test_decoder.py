import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.data.batch import restarted
from scaling.model import decoder
from scaling.model.context import AttentionContext
from tests import tiny

pytestmark = pytest.mark.usefixtures("on_one_device")


@pytest.fixture(scope="module")
def params():
    return decoder.initialize(tiny.model(), jax.random.key(0))


TOKENS = np.random.default_rng(0).integers(1, tiny.VOCAB, (3, 16)).astype(np.int32)


def forward(network, params, tokens, **kwargs):
    return jax.jit(lambda p, t, k: decoder.merge(network, p)(t, **k))(params, tokens, kwargs)


def position_influence(network, params):
    """|d hidden[t] / d position embedding[s]| for all t, s: what each position sees, [T, T]."""

    def probe(positions, t):
        hidden = decoder.merge(network, params | {"positions": positions})(TOKENS[:1])
        return jnp.dot(hidden[0, t], jnp.arange(1.0, network.model.d_model + 1))

    gradient = jax.jit(jax.vmap(jax.grad(probe), (None, 0)))(params["positions"], jnp.arange(16))
    return np.abs(gradient).sum(-1)[:, :16]


def test_causal_by_gradients(params):
    seen = position_influence(tiny.network(), params)
    assert (seen[np.triu_indices(16, 1)] == 0).all()
    assert (seen[np.tril_indices(16)] > 0).all()  # dense layers reach all the past


def test_banded_layers_see_exactly_their_band():
    network = tiny.network(attention_pattern=("banded",), num_layers=1)
    seen = position_influence(network, decoder.initialize(network.model, jax.random.key(1)))
    age = np.arange(16)[:, None] - np.arange(16)
    np.testing.assert_array_equal(seen > 0, (age >= 0) & (age < network.model.band_width))


def test_packed_documents_equal_their_parts(params):
    network = tiny.network()
    first, second = TOKENS[0, :6], TOKENS[1, :10]
    packed = np.concatenate([first, second])[None]
    segments = np.concatenate([np.zeros(6, np.int32), np.ones(10, np.int32)])[None]
    together = forward(network, params, packed, context=AttentionContext(restarted(segments), segments))
    parts = [forward(network, params, part[None])[0] for part in (first, second)]
    np.testing.assert_allclose(together[0], np.concatenate(parts), atol=2e-6)
    mixed = forward(network, params, packed)  # without the mask the second document sees the first
    assert np.abs(mixed[0, 6:] - parts[1]).max() > 1e-3


def gradients(network, params):
    def loss(p):
        return jnp.square(decoder.merge(network, p)(TOKENS, key=jax.random.key(3))).sum()

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["dots", "projections", "full"])
def test_remat_equals_no_remat(params, remat):
    changes = dict(dropout_residual=0.1, dropout_attention=0.1, dropout_embedding=0.1)
    plain = gradients(tiny.network(**changes), params)
    rematted = gradients(tiny.network(remat=remat, **changes), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), plain, rematted)


@pytest.mark.slow
def test_dropout_needs_a_key_and_changes_the_output(params):
    network = tiny.network(dropout_residual=0.5)
    plain = forward(tiny.network(), params, TOKENS)
    np.testing.assert_array_equal(forward(network, params, TOKENS), plain)
    one, two = (forward(network, params, TOKENS, key=jax.random.key(k)) for k in (0, 1))
    assert np.abs(one - plain).max() > 0.1 and np.abs(one - two).max() > 0.1


def test_layers_are_initialised_differently_and_to_scale(params):
    up = np.asarray(params["blocks"]["mlp"]["up"])
    assert np.abs(up[0] - up[1]).max() > 0
    assert up.std() == pytest.approx(0.02, rel=0.05)
    assert np.asarray(params["blocks"]["mlp"]["down"]).std() == pytest.approx(0.02 / np.sqrt(4), rel=0.05)


def test_untied_and_post_norm_trees():
    network = tiny.network(tied_embedding=False, norm="post", attention_pattern=("dense",))
    params = decoder.initialize(network.model, jax.random.key(0))
    assert params["unembedding"].shape == (56, 32) and "final_norm" not in params
    hidden = forward(network, params, TOKENS)
    # LayerNorm comes last in a post-norm block, with unit gains at the start.
    np.testing.assert_allclose(np.asarray(hidden).std(-1), 1, atol=1e-2)


def test_bfloat16_stays_near_float32(params):
    wide = forward(tiny.network(), params, TOKENS)
    narrow = forward(tiny.network(dtype="bfloat16"), params, TOKENS)
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_allclose(narrow.astype(np.float32), wide, atol=0.06)


@pytest.mark.slow
def test_bfloat16_gradients_stay_near_float32():
    """Also where thousands of tokens share a parameter: biases, positions, the rows of frequent tokens."""
    tokens = np.random.default_rng(0).zipf(1.5, (128, 32)).clip(max=tiny.VOCAB - 1).astype(np.int32)
    params = decoder.initialize(tiny.model(), jax.random.key(0))
    probe = jax.random.normal(jax.random.key(1), (128, 32, 32)) + 1.0  # a common part, which adds up

    def gradient(dtype):
        def loss(p):
            return (decoder.merge(tiny.network(dtype=dtype), p)(tokens) * probe).mean()

        return jax.jit(jax.grad(loss))(params)

    narrow, wide = gradient("bfloat16"), gradient("float32")
    for (path, got), want in zip(jax.tree.leaves_with_path(narrow), jax.tree.leaves(wide), strict=True):
        name = jax.tree_util.keystr(path)
        if "key_bias" in name:  # it has no gradient in truth
            continue
        assert np.linalg.norm(got - want) < 0.03 * np.linalg.norm(want), name


def test_abstract_tree_matches_the_real_one(params):
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), params)
    assert shapes == jax.tree.map(lambda a: (a.shape, a.dtype), decoder.abstract(tiny.model()))
    axes = decoder.axes_tree(tiny.model())
    jax.tree.map(lambda a, x: len(x) == a.ndim or pytest.fail(f"{x} for {a.shape}"), params, axes)


def test_too_long_a_sequence_is_refused(params):
    with pytest.raises(ValueError, match=r"40 tokens .*32 positions"):
        decoder.merge(tiny.network(), params)(np.zeros((1, 40), np.int32))
