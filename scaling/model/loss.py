"""Next-token cross-entropy, chunked over time and sharded over the vocabulary.

The logits of a long sequence over 50k tokens are the largest array of a training step, so they never
exist whole. Being the last operation, the loss computes its own gradient on the way forward (a chunk of
logits is turned into a chunk of gradients at once): three products a chunk, nothing saved, nothing
recomputed. ``shard_map`` keeps the sums local: the gradient of the table crosses the network once a
call, not once a chunk.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from scaling.parallel.sharding import CONTEXT_AXIS, ROW_AXES, gradient_spec

_MASKED = -1e30
VOCAB_AXIS = "tensor"


class LossConfig(NamedTuple):
    vocab_size: int  # rows of the table beyond it are padding and get no probability
    logit_multiplier: float = 1.0
    z_loss: float = 0.0
    chunk: int = 0  # positions unembedded at a time; 0 = all


class Sums(NamedTuple):
    """Sums over the tokens that count (float32 scalars); divide by ``targets`` for means."""

    objective: jax.Array  # what is minimised: nll plus z-loss
    nll: jax.Array  # negative log-likelihood, nats
    targets: jax.Array  # tokens with a target


def cross_entropy(hidden: jax.Array, table: jax.Array, targets: jax.Array, config: LossConfig) -> Sums:
    """Sums of the loss over a batch; differentiable in ``hidden`` and ``table``, through ``objective`` only.

    Args:
        hidden: final hidden states [B, T, D], in the compute dtype.
        table: output projection [V, D] (V padded), in the compute dtype, sharded over ``tensor``.
        targets: next token ids, int32 [B, T]; negative = does not count.
        config: what is static.

    The penalty is z_loss * logsumexp(logits)^2 (PaLM, arXiv 2204.02311, section 5).
    """
    objective, nll, count = _cross_entropy(hidden, table, targets, config)
    return Sums(objective, nll, count)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _cross_entropy(hidden, table, targets, config):
    return _sharded(hidden, table, targets, config, False)


def _forward(hidden, table, targets, config):
    sums, grads = _sharded(hidden, table, targets, config, True)
    return sums, grads


def _backward(config, grads, cotangents):
    scale = cotangents[0]
    return *(((g * scale).astype(g.dtype)) for g in grads), None


_cross_entropy.defvjp(_forward, _backward)


def _sharded(hidden, table, targets, config, with_grads):
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return _local(hidden, table, targets, config, with_grads, None, ())
    batch = ROW_AXES if hidden.shape[0] % math.prod(mesh.shape[axis] for axis in ROW_AXES) == 0 else None
    time = CONTEXT_AXIS if batch and hidden.shape[1] % mesh.shape[CONTEXT_AXIS] == 0 else None
    hidden_spec, table_spec = P(batch, time, None), P(VOCAB_AXIS, None)
    # The table's gradient is wanted as parameters are stored: summed and scattered in one, half of an all-reduce.
    scatters = gradient_spec((None, "embed"))[1]
    if time is None or table.shape[1] % math.prod(mesh.shape[axis] for axis in scatters):
        scatters = ()
    token_axes = (*(batch or ()), *([time] if time else []))
    outputs = (P(), P(), P())
    run = jax.shard_map(
        functools.partial(_local, config=config, with_grads=with_grads, token_axes=token_axes, scatters=scatters),
        in_specs=(hidden_spec, table_spec, P(batch, time)),
        out_specs=(outputs, (hidden_spec, P(VOCAB_AXIS, scatters or None))) if with_grads else outputs,
        check_vma=False,
    )
    return run(hidden, table, targets)


def _local(hidden, table, targets, config, with_grads, token_axes, scatters):
    """One device's share: its tokens of the batch against its rows of the vocabulary (``token_axes`` None: all)."""
    sharded = token_axes is not None
    length, rows = hidden.shape[1], table.shape[0]
    first = jax.lax.axis_index(VOCAB_AXIS) * rows if sharded else 0
    ids = first + jnp.arange(rows)

    def over_vocab(x):
        return jax.lax.psum(x, VOCAB_AXIS) if sharded else x

    def chunk_of(carry, inputs):
        sums, grad_table = carry
        h, t = inputs
        logits = jnp.einsum("btd,vd->btv", h, table, preferred_element_type=jnp.float32) * config.logit_multiplier
        logits = jnp.where(ids < config.vocab_size, logits, _MASKED)
        peak = logits.max(-1)
        peak = jax.lax.pmax(peak, VOCAB_AXIS) if sharded else peak
        exp = jnp.exp(logits - peak[..., None])
        total = over_vocab(exp.sum(-1))
        log_z = jnp.log(total) + peak
        hit = ids == t[..., None]
        counts = t >= 0
        nll = jnp.where(counts, log_z - over_vocab(jnp.where(hit, logits, 0.0).sum(-1)), 0.0)
        penalty = config.z_loss * jnp.where(counts, jnp.square(log_z), 0.0)
        sums = tuple(s + x.sum() for s, x in zip(sums, (nll + penalty, nll, counts), strict=True))
        if not with_grads:
            return (sums, grad_table), None
        slope = (1 + 2 * config.z_loss * log_z) / total  # d objective / d logit, before the target's -1
        grad = jnp.where(counts[..., None], exp * slope[..., None] - hit, 0.0) * config.logit_multiplier
        grad = grad.astype(h.dtype)
        grad_hidden = jnp.einsum("btv,vd->btd", grad, table)
        grad_table += jnp.einsum("btv,btd->vd", grad, h, preferred_element_type=jnp.float32)
        return (sums, grad_table), grad_hidden

    zero = jnp.zeros((), jnp.float32)
    carry = ((zero, zero, zero), jnp.zeros(table.shape, jnp.float32) if with_grads else zero)
    chunk = config.chunk if 0 < config.chunk < length else length
    if chunk == length:
        (sums, grad_table), grad_hidden = chunk_of(carry, (hidden, targets))
    else:
        pad = -length % chunk
        h = jnp.pad(hidden, ((0, 0), (0, pad), (0, 0))).reshape(hidden.shape[0], -1, chunk, hidden.shape[2])
        t = jnp.pad(targets, ((0, 0), (0, pad)), constant_values=-1).reshape(targets.shape[0], -1, chunk)
        (sums, grad_table), grad_hidden = jax.lax.scan(chunk_of, carry, (h.swapaxes(0, 1), t.swapaxes(0, 1)))
        if with_grads:
            grad_hidden = grad_hidden.swapaxes(0, 1).reshape(hidden.shape[0], -1, hidden.shape[2])[:, :length]
    if sharded:
        sums = jax.lax.psum(sums, token_axes) if token_axes else sums
    if not with_grads:
        return sums
    if sharded:
        grad_hidden = over_vocab(grad_hidden)
        if scatters:
            grad_table = jax.lax.psum_scatter(grad_table, scatters, scatter_dimension=1, tiled=True)
            token_axes = tuple(axis for axis in token_axes if axis not in scatters)
        grad_table = jax.lax.psum(grad_table, token_axes) if token_axes else grad_table
    return sums, (grad_hidden, grad_table.astype(table.dtype))
