"""Log-probabilities of given tokens, chunked over time and sharded over the vocabulary; and the loss made of them.

The logits of a long sequence over 50k tokens are the largest array of a training step, so they never exist whole.
Where the weight of each token is known beforehand, as in a loss, the gradient is computed on the way forward: a chunk
of logits is turned into a chunk of gradients at once, three products a chunk, nothing saved, nothing computed twice
(``weighted_loss``). Where it is not, as in a ratio of probabilities, the backward pass computes the logits again
(``log_probs``). Both are one function of a chunk. ``shard_map`` keeps the sums local: the gradient of the table crosses
the network once a call, not once a chunk.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from scaling.config import schema as cfg
from scaling.model.decoder import Output
from scaling.model.parametrization import parametrization
from scaling.parallel.sharding import CONTEXT_AXIS, ROW_AXES, current_mesh, gradient_spec

_MASKED = -1e30
VOCAB_AXIS = "tensor"

# (log-partition functions of a chunk [B, t], what is known of its tokens) -> derivatives of what is minimised by the
# log-probability and by the log-partition function, [B, t] each.
Slopes = Callable[[jax.Array, Any], tuple[jax.Array, jax.Array]]


class Unembedding(NamedTuple):
    """How hidden states become logits.

    Attributes:
        vocab_size: rows of the table beyond it are padding and get no probability.
        logit_multiplier: of the parametrization.
        chunk: positions unembedded at a time; 0 = all.
        entropy: also that of each distribution, as a number without a gradient.
        smoothing: probability that a loss spreads over the whole vocabulary, and takes from the target's (arXiv
            1512.00567, section 7); for ``weighted_loss``.
    """

    vocab_size: int
    logit_multiplier: float = 1.0
    chunk: int = 0
    entropy: bool = False
    smoothing: float = 0.0

    @classmethod
    def of(cls, config: cfg.Config) -> "Unembedding":
        """That of a resolved config, without smoothing."""
        multiplier = parametrization(config.model).logit_multiplier
        return cls(config.model.vocab_size, multiplier, config.compute.loss_chunk)


def log_probs(hidden: jax.Array, output: Output, targets: jax.Array, how: Unembedding) -> tuple[jax.Array, ...]:
    """Log-probability of each target, and the log-partition function there; differentiable in hidden and output.

    Args:
        hidden: final hidden states [B, T, D], in the compute dtype.
        output: the output projection [V, D] (V padded), in the compute dtype, sharded over ``tensor``; and its bias.
        targets: token ids, int32 [B, T].
        how: what is static.

    Returns:
        float32 [B, T] each; with ``how.entropy`` the entropy too, in nats.
    """
    assert not how.smoothing
    return _log_probs(hidden, output, targets, how)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _log_probs(hidden, output, targets, how):
    return _sharded(hidden, output, targets, None, how, None)[0]


def _log_probs_forward(hidden, output, targets, how):
    return _log_probs(hidden, output, targets, how), (hidden, output, targets)


def _log_probs_backward(how, saved, slopes):
    hidden, output, targets = saved
    how = how._replace(entropy=False)
    _, grads = _sharded(hidden, output, targets, slopes[:2], how, lambda log_z, known: known)
    return *grads, None


_log_probs.defvjp(_log_probs_forward, _log_probs_backward)


def weighted_loss(
    hidden: jax.Array, output: Output, targets: jax.Array, weights: jax.Array, how: Unembedding, z_loss: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """The sum of weights * (z_loss * log_partition^2 - log_prob), and the log-probabilities.

    With ``how.smoothing`` the first has, in the place of log_prob, (1 - smoothing) * log_prob + smoothing * the mean of
    the log-probabilities of all tokens; the second stays what it is.

    Args:
        hidden: as in ``log_probs``.
        output: as in ``log_probs``.
        targets: as in ``log_probs``.
        weights: float32 [B, T]; no gradient flows to them.
        how: what is static.
        z_loss: coefficient of the penalty.

    Returns:
        A float32 scalar, differentiable in hidden and output, and float32 [B, T], for metrics: no gradient flows
        through it.
    """
    return _weighted_loss(hidden, output, targets, weights, how, z_loss)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _weighted_loss(hidden, output, targets, weights, how, z_loss):
    scores, _ = _sharded(hidden, output, targets, weights, how, None)
    return _summed(scores, weights, how, z_loss)


def _weighted_loss_forward(hidden, output, targets, weights, how, z_loss):
    def slopes(log_z, weights):
        return -weights, 2 * z_loss * log_z * weights

    scores, grads = _sharded(hidden, output, targets, weights, how, slopes)
    return _summed(scores, weights, how, z_loss), grads


def _weighted_loss_backward(how, z_loss, grads, cotangents):
    scale = cotangents[0]
    return *jax.tree.map(lambda g: (g * scale).astype(g.dtype), grads), None, None


_weighted_loss.defvjp(_weighted_loss_forward, _weighted_loss_backward)


def _summed(scores, weights, how, z_loss):
    log_prob, log_z, *mean = scores
    wanted = log_prob
    if how.smoothing:
        wanted = (1 - how.smoothing) * log_prob + how.smoothing * (mean[0] - log_z)
    each = z_loss * jnp.square(log_z) - wanted if z_loss else -wanted
    return (weights * each).sum(), log_prob


def _sharded(hidden, output, targets, known, how, slopes):
    """Log-probabilities and log-partition functions [B, T]; with ``slopes`` also the gradients of hidden and output.

    With ``how.smoothing`` the third number of a token is the mean of its logits.

    Args:
        hidden: [B, T, D].
        output: an ``Output``.
        targets: [B, T].
        known: tree of arrays [B, T] that ``slopes`` takes.
        how: an ``Unembedding``.
        slopes: a ``Slopes``; None = no gradients.
    """
    mesh = current_mesh()
    batch = ROW_AXES if hidden.shape[0] % math.prod(mesh.shape[axis] for axis in ROW_AXES) == 0 else None
    time = CONTEXT_AXIS if batch and hidden.shape[1] % mesh.shape[CONTEXT_AXIS] == 0 else None
    hidden_spec, tokens = P(batch, time, None), P(batch, time)
    bias = None if output.bias is None else P(VOCAB_AXIS)
    # The table's gradient is wanted as parameters are stored: summed and scattered in one, half of an all-reduce.
    scatters = gradient_spec((None, "embed"))[1]
    if time is None or output.table.shape[1] % math.prod(mesh.shape[axis] for axis in scatters):
        scatters = ()
    token_axes = (*(batch or ()), *([time] if time else []))
    grads = (hidden_spec, (P(VOCAB_AXIS, scatters or None), bias)) if slopes else None
    run = jax.shard_map(
        functools.partial(_local, how=how, slopes=slopes, token_axes=token_axes, scatters=scatters),
        in_specs=((hidden_spec, tokens, tokens), (P(VOCAB_AXIS, None), bias)),
        out_specs=((tokens,) * (2 + how.entropy + bool(how.smoothing)), grads),
        check_vma=False,
    )
    scores, grads = run((hidden, targets, known), tuple(output))
    return scores, (grads[0], Output(*grads[1])) if slopes else None


def _local(batch, output, *, how, slopes, token_axes, scatters):
    """One device's share: its tokens of the batch (hidden, targets, known) against its rows of the vocabulary."""
    table, bias = output
    length, rows = batch[0].shape[1], table.shape[0]
    ids = jax.lax.axis_index(VOCAB_AXIS) * rows + jnp.arange(rows)

    def chunk_of(total_grads, inputs):
        h, t, k = inputs
        logits = jnp.einsum("btd,vd->btv", h, table, preferred_element_type=jnp.float32) * how.logit_multiplier
        if bias is not None:
            logits += bias
        real = ids < how.vocab_size
        logits = jnp.where(real, logits, _MASKED)
        peak = jax.lax.pmax(logits.max(-1), VOCAB_AXIS)
        exp = jnp.exp(logits - peak[..., None])
        total = jax.lax.psum(exp.sum(-1), VOCAB_AXIS)
        log_z = jnp.log(total) + peak
        hit = ids == t[..., None]
        log_prob = jax.lax.psum(jnp.where(hit, logits, 0.0).sum(-1), VOCAB_AXIS) - log_z
        if how.entropy:
            entropy = log_z - jax.lax.psum((exp * logits).sum(-1), VOCAB_AXIS) / total
            return total_grads, ((log_prob, log_z, entropy), None)
        scores: tuple[jax.Array, ...] = (log_prob, log_z)
        if how.smoothing:
            scores += (jax.lax.psum(jnp.where(real, logits, 0.0).sum(-1), VOCAB_AXIS) / how.vocab_size,)
        if slopes is None:
            return total_grads, (scores, None)
        of_log_prob, of_log_z = slopes(log_z, k)
        grad = exp * ((of_log_z - of_log_prob) / total)[..., None] + jnp.where(hit, of_log_prob[..., None], 0.0)
        if how.smoothing:  # a part of what the target has is shared by all tokens
            grad += (how.smoothing * of_log_prob)[..., None] * (real / how.vocab_size - hit)
        of_table, of_bias = total_grads
        of_bias = None if bias is None else of_bias + grad.sum((0, 1))
        grad = (grad * how.logit_multiplier).astype(h.dtype)
        of_table += jnp.einsum("btv,btd->vd", grad, h, preferred_element_type=jnp.float32)
        return (of_table, of_bias), (scores, jnp.einsum("btv,vd->btd", grad, table))

    start = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), output) if slopes else None
    chunk = how.chunk if 0 < how.chunk < length else length
    if chunk == length:
        grads, found = chunk_of(start, batch)
    else:
        inputs = jax.tree.map(functools.partial(in_chunks, chunk=chunk), batch)
        grads, found = jax.lax.scan(chunk_of, start, inputs)
        found = jax.tree.map(functools.partial(_together, length=length), found)
    scores, grad_hidden = found
    if slopes is None:
        return scores, None
    grad_hidden = jax.lax.psum(grad_hidden, VOCAB_AXIS)
    of_table, of_bias = grads
    of_bias = jax.lax.psum(of_bias, token_axes) if token_axes and bias is not None else of_bias
    if scatters:
        of_table = jax.lax.psum_scatter(of_table, scatters, scatter_dimension=1, tiled=True)
        token_axes = tuple(axis for axis in token_axes if axis not in scatters)
    of_table = jax.lax.psum(of_table, token_axes) if token_axes else of_table
    return scores, (grad_hidden, (of_table.astype(table.dtype), of_bias))


def in_chunks(x: jax.Array, chunk: int) -> jax.Array:
    """[B, T, ...] as [T / chunk, B, chunk, ...], filled up with zeros: what is known of a token that is none is 0."""
    padding = [(0, 0), (0, -x.shape[1] % chunk), *[(0, 0)] * (x.ndim - 2)]
    return jnp.pad(x, padding).reshape(x.shape[0], -1, chunk, *x.shape[2:]).swapaxes(0, 1)


def _together(x: jax.Array, length: int) -> jax.Array:
    """The reverse of ``in_chunks``."""
    return x.swapaxes(0, 1).reshape(x.shape[1], -1, *x.shape[3:])[:, :length]
