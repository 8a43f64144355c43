import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config import schema as cfg
from scaling.model.decoder import Output
from scaling.objectives.log_probs import Unembedding, log_probs, weighted_loss
from scaling.parallel.mesh import make_mesh

pytestmark = pytest.mark.usefixtures("on_one_device")

DICE = np.random.default_rng(0)
HIDDEN, TABLE, BIAS = (DICE.standard_normal(shape, np.float32) for shape in ((8, 12, 16), (64, 16), (64,)))
TARGETS = DICE.integers(0, 50, (8, 12), np.int32)
WEIGHTS = DICE.choice([0.0, 1.0, 0.5], (8, 12)).astype(np.float32)  # 0: does not count


def whole_logits(hidden, output):
    return (jnp.einsum("btd,vd->btv", hidden, output.table) * 0.5 + (0 if output.bias is None else output.bias))[
        ..., :50
    ]


def scores(hidden, output):
    """Log-probabilities and log-partition functions by whole logits."""
    logits = whole_logits(hidden, output)
    log_z = jax.nn.logsumexp(logits, -1)
    return jnp.take_along_axis(logits, TARGETS[..., None], -1)[..., 0] - log_z, log_z


def reference(hidden, output, smoothing=0.0):
    log_prob, log_z = scores(hidden, output)
    if smoothing:  # the cross-entropy with a distribution that is given as a whole
        wanted = (1 - smoothing) * jax.nn.one_hot(TARGETS, 50) + smoothing / 50
        log_prob = (wanted * jax.nn.log_softmax(whole_logits(hidden, output))).sum(-1)
    return (WEIGHTS * (0.01 * log_z**2 - log_prob)).sum()


def smoothed(hidden, output):
    return reference(hidden, output, 0.1)


def ratio(log_prob, log_z):
    """Log-probabilities whose weights depend on themselves, as in a ratio of policies."""
    return jnp.sin(log_prob).sum() + (WEIGHTS * log_z**2).sum()


def ratio_of_scores(hidden, output):
    return ratio(*scores(hidden, output))


OUTPUTS = {"plain": Output(TABLE, None), "biased": Output(TABLE, BIAS)}


@functools.cache
def by_whole_logits(function, name):
    """Value and gradients of a function of whole logits, computed once for all ways."""
    return jax.jit(jax.value_and_grad(function, (0, 1)))(HIDDEN, OUTPUTS[name])


MIXED = cfg.Mesh(fsdp=2, tensor=2)


WAYS = [*((chunk, None) for chunk in (0, 4, 5, 100)), (0, MIXED), (5, MIXED), (5, cfg.Mesh()), (5, cfg.Mesh(tensor=8))]


@pytest.mark.slow
@pytest.mark.parametrize(("chunk", "mesh"), WAYS)
@pytest.mark.parametrize("name", OUTPUTS)
def test_a_smoothed_loss_equals_that_of_whole_distributions(chunk, mesh, name):
    output = OUTPUTS[name]
    how = Unembedding(vocab_size=50, logit_multiplier=0.5, chunk=chunk, smoothing=0.1)

    def objective(hidden, output):
        minimised, found = weighted_loss(hidden, output, TARGETS, WEIGHTS, how, 0.01)
        return 2.0 * minimised, found

    with contextlib.nullcontext() if mesh is None else jax.set_mesh(make_mesh(mesh)):
        (value, found), grads = jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True))(HIDDEN, output)
        (alone, _) = jax.jit(objective)(HIDDEN, output)  # as a validation computes it, without a gradient
    want, want_grads = by_whole_logits(smoothed, name)
    np.testing.assert_allclose([value, alone], 2 * want, rtol=1e-6)
    np.testing.assert_allclose(found, scores(HIDDEN, output)[0], atol=1e-5)  # the loss that is logged is not smoothed
    for got, expected in zip(*map(jax.tree.leaves, (grads, want_grads)), strict=True):
        np.testing.assert_allclose(got, 2 * expected, atol=5e-6)


@pytest.mark.parametrize(("chunk", "mesh"), WAYS)
@pytest.mark.parametrize("name", OUTPUTS)
def test_value_and_gradients_equal_the_whole_logits(chunk, mesh, name):
    output = OUTPUTS[name]
    how = Unembedding(vocab_size=50, logit_multiplier=0.5, chunk=chunk)

    def objective(hidden, output):
        minimised, found = weighted_loss(hidden, output, TARGETS, WEIGHTS, how, 0.01)
        return 2.0 * minimised, found  # the factor tests the incoming cotangent

    def ratio_in_chunks(hidden, output):
        return ratio(*log_probs(hidden, output, TARGETS, how))

    def both(hidden, output):
        of_loss = jax.value_and_grad(objective, (0, 1), has_aux=True)(hidden, output)
        return of_loss, jax.value_and_grad(ratio_in_chunks, (0, 1))(hidden, output)

    with contextlib.nullcontext() if mesh is None else jax.set_mesh(make_mesh(mesh)):
        ((value, found), grads), (other, other_grads) = jax.jit(both)(HIDDEN, output)
    want, want_grads = by_whole_logits(reference, name)
    np.testing.assert_allclose(value, 2 * want, rtol=1e-6)
    np.testing.assert_allclose(found, scores(HIDDEN, output)[0], atol=1e-5)
    for got, expected in zip(*map(jax.tree.leaves, (grads, want_grads)), strict=True):
        np.testing.assert_allclose(got, 2 * expected, atol=5e-6)
    want, want_grads = by_whole_logits(ratio_of_scores, name)
    np.testing.assert_allclose(other, want, rtol=1e-5)
    for got, expected in zip(*map(jax.tree.leaves, (other_grads, want_grads)), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5)


def test_whole_logits_never_exist():
    """With chunks, no array of the compiled program holds batch x time x vocabulary."""
    how = Unembedding(vocab_size=1000, chunk=8)
    shapes = [jax.ShapeDtypeStruct(s, d) for s, d in [((2, 64, 16), jnp.float32), ((1024, 16), jnp.float32)]]
    targets = jnp.zeros((2, 64), jnp.int32)
    grad = jax.jit(jax.grad(lambda h, w: weighted_loss(h, Output(w), targets, 1.0 + 0 * targets, how)[0], (0, 1)))
    compiled = grad.lower(*shapes).compile()
    whole = 2 * 64 * 1024 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < whole
    assert "f32[2,8,1024]" in compiled.as_text() and "f32[2,64,1024]" not in compiled.as_text()
