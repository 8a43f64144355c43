import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from scaling.config import schema as cfg
from scaling.model.attend import Softmax, attend
from scaling.model.attention import SelfAttention
from scaling.model.context import AttentionContext
from scaling.parallel.mesh import make_mesh
from tests import tiny

pytestmark = pytest.mark.usefixtures("on_one_device")


def tensors(length, seed=0, heads=(3, 3, 3)):
    keys = jax.random.split(jax.random.key(seed), 3)
    return [jax.random.normal(k, (2, h, length, 8)) for k, h in zip(keys, heads, strict=True)]


def attended(q, k, v, context, softmax):
    """``attend`` as one program: compiled operation by operation, it takes four times as long."""
    return jax.jit(lambda q, k, v: attend(q, k, v, context, softmax))(q, k, v)


def gradients(tensors, *functions):
    """Of each function."""
    return [jax.jit(jax.grad(function, (0, 1, 2)))(*tensors) for function in functions]


def reference(q, k, v, window, segments, strided=False, slopes=(0, 0, 0)):
    """The formula, one query at a time, in NumPy float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    for b in range(q.shape[0]):
        for t in range(q.shape[2]):
            near = [not window or t - s < window or (strided and (t - s) % window == 0) for s in range(t + 1)]
            seen = [s for s in range(t + 1) if near[s] and segments[b, s] == segments[b, t]]
            scores = np.einsum("hk,hsk->hs", q[b, :, t], k[b][:, seen]) * 0.3
            scores -= np.outer(slopes, [t - s for s in seen])
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            out[b, :, t] = np.einsum("hs,hsk->hk", weights, v[b][:, seen])
    return out


@pytest.mark.parametrize("length", [12, 13, 16, 1])
@pytest.mark.parametrize("window", [0, 1, 3, 4, 6, 7, 40])
def test_equals_the_formula(length, window):
    q, k, v = tensors(length)
    segments = np.cumsum(np.arange(length) % 5 == 4)[None].repeat(2, 0)
    for seg in (None, segments):
        out = attended(q, k, v, AttentionContext(segments=seg, window=window), Softmax(0.3))
        want = reference(q, k, v, window, np.zeros((2, length)) if seg is None else seg)
        np.testing.assert_allclose(out, want, atol=2e-6)


@pytest.mark.parametrize(("length", "window"), [(12, 3), (13, 4), (16, 7), (9, 1), (5, 40)])
def test_strided_and_biased_equal_the_formula(length, window):
    q, k, v = tensors(length)
    segments = np.cumsum(np.arange(length) % 8 == 7)[None].repeat(2, 0)
    slopes = (0.5, 0.1, 0.02)
    for seg in (None, segments):
        for strided in (True, False):
            context = AttentionContext(segments=seg, window=window, strided=strided)
            out = attended(q, k, v, context, Softmax(0.3, slopes=slopes))
            known = np.zeros((2, length)) if seg is None else seg
            np.testing.assert_allclose(out, reference(q, k, v, window, known, strided, slopes), atol=2e-6)


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("heads", [1, 2])
def test_grouped_heads_equal_repeated_keys(heads, window):
    q, k, v = tensors(13, heads=(4, heads, heads))
    context = AttentionContext(window=window)

    def loss(q, k, v):
        return jnp.sin(attend(q, k, v, context, Softmax(0.3, slopes=(0.1, 0.2, 0.3, 0.4)))).sum()

    def repeated(q, k, v):
        return loss(q, *(jnp.repeat(x, 4 // heads, axis=1) for x in (k, v)))

    for a, b in zip(*gradients((q, k, v), loss, repeated), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_strided_gradients_equal_dense_under_the_same_mask():
    q, k, v = tensors(16)
    age = np.arange(16)[:, None] - np.arange(16)
    mask = (age >= 0) & ((age < 4) | (age % 4 == 0))

    def dense(q, k, v):
        scores = jnp.where(mask, jnp.einsum("bhtk,bhsk->bhts", q, k) * 0.3, -jnp.inf)
        return jnp.square(jnp.einsum("bhts,bhsk->bhtk", jax.nn.softmax(scores, -1), v)).sum()

    def strided(q, k, v):
        return jnp.square(attend(q, k, v, AttentionContext(window=4, strided=True), Softmax(0.3))).sum()

    for a, b in zip(*gradients((q, k, v), dense, strided), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_banded_gradients_equal_dense_under_the_same_mask():
    """A band written as segments-free dense attention with masked scores has the same gradients."""
    q, k, v = tensors(16)

    def dense(q, k, v):
        age = jnp.arange(16)[:, None] - jnp.arange(16)
        scores = jnp.einsum("bhtk,bhsk->bhts", q, k) * 0.3
        weights = jax.nn.softmax(jnp.where((age >= 0) & (age < 4), scores, -jnp.inf), -1)
        return jnp.square(jnp.einsum("bhts,bhsk->bhtk", weights, v)).sum()

    def banded(q, k, v):
        return jnp.square(attend(q, k, v, AttentionContext(window=4), Softmax(0.3))).sum()

    for a, b in zip(*gradients((q, k, v), dense, banded), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_band_costs_its_band():
    """FLOPs of the banded form grow with length times window, not with the square."""

    def flops(length, window):
        shape = jax.ShapeDtypeStruct((1, 1, length, 8), jnp.float32)
        run = jax.jit(lambda q, k, v: attend(q, k, v, AttentionContext(window=window), Softmax(1.0)))
        compiled = run.lower(shape, shape, shape)
        return compiled.compile().cost_analysis()["flops"]

    assert flops(256, 16) < 0.25 * flops(256, 0)


def test_attention_dropout_keeps_the_mean():
    q, k, v = tensors(16)
    run = jax.jit(jax.vmap(lambda key: attend(q, k, v, AttentionContext(), Softmax(0.3, 0.3, key))))
    mean = run(jax.random.split(jax.random.key(0), 2000)).mean(0)
    np.testing.assert_allclose(mean, attend(q, k, v, AttentionContext(), Softmax(0.3)), atol=0.12)


def test_a_product_for_all_equals_three():
    """Where heads are sharded, queries, keys and values come from one product: same values, same gradients."""
    network = tiny.network()
    attention = SelfAttention(network, nnx.Rngs(0))
    for number, bias in enumerate((attention.query_bias, attention.key_bias, attention.value_bias)):
        bias[...] = jax.random.normal(jax.random.key(number), bias.shape)
    graph, state = nnx.split(attention)
    x = jax.random.normal(jax.random.key(2), (2, 8, network.model.d_model))

    def loss(state, x):
        return jnp.sin(3 * nnx.merge(graph, state)(x, AttentionContext())[0]).sum()

    gradients = jax.grad(loss, argnums=(0, 1))
    three = jax.jit(gradients)(state, x)
    with jax.set_mesh(make_mesh(cfg.Mesh(data=1, tensor=4), jax.devices()[:4])):
        one = jax.jit(gradients)(*jax.device_get((state, x)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), one, three)
    assert all(float(jnp.abs(three[0][name][...]).max()) > 1e-3 for name in ("query", "key", "value"))


@pytest.mark.parametrize("window", [0, 3])
def test_attention_in_both_directions(window):
    q, k, v = tensors(12)
    segments = jnp.asarray(np.cumsum(np.arange(12) % 5 == 4)[None].repeat(2, 0))
    out = attend(q, k, v, AttentionContext(segments=segments, window=window, causal=False), Softmax(0.3))
    age = np.abs(np.arange(12)[:, None] - np.arange(12))
    mask = (segments[:, :, None] == segments[:, None, :]) & (age < (window or 12))
    scores = jnp.where(mask[:, None], jnp.einsum("bhtk,bhsk->bhts", q, k) * 0.3, -jnp.inf)
    np.testing.assert_allclose(out, jnp.einsum("bhts,bhsk->bhtk", jax.nn.softmax(scores, -1), v), atol=2e-6)
