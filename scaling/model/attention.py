"""Self-attention: dense, or in a local band (Sparse Transformer, arXiv 1904.10509; GPT-3, section 2.1)."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from scaling.config import schema as cfg
from scaling.model import kernels, ring
from scaling.model.context import AttentionContext, Cached, Memory
from scaling.model.fused import stacked
from scaling.model.layers import SAVED, Parameter, add_bias, constant, dropout, normal, normal_parts
from scaling.model.parametrization import parametrization
from scaling.model.quantized import project
from scaling.parallel.sharding import constrain, current_mesh, platform

_MASKED = -1e30  # not -inf: a fully masked row (padding) must give finite gradients


class Softmax(NamedTuple):
    """How scores become weights.

    Attributes:
        scale: multiplies q.k.
        rate: of the dropout on the weights.
        key: of the dropout; None = no dropout.
    """

    scale: float
    rate: float = 0.0
    key: jax.Array | None = None

    def keys(self, count: int) -> jax.Array | None:
        """A key of dropout for each of some parts of the queries."""
        return None if self.key is None else jax.random.split(self.key, count)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    context: AttentionContext,
    softmax: Softmax,
    block: int = 512,
) -> jax.Array:
    """Attention among the tokens of a call, and over what is cached before them.

    On a TPU or a GPU by the kernel that serves the call (``kernels.serving``), else as written here; over a sequence
    in zigzag order by the ring. A window narrower than half the sequence costs its band, not the square.

    Args:
        q: queries [B, H, T, K].
        k: keys [B, H, T, K].
        v: values [B, H, T, K].
        context: who sees whom.
        softmax: its dropout is for texts that are neither cached nor branched nor in zigzag order.
        block: positions in a block of the TPU's kernel, and of the ring.

    Returns:
        [B, H, T, K], in q's dtype; scores and softmax are float32.
    """
    scale, dropped = softmax.scale, softmax.key is not None
    if context.branches is not None:
        assert not dropped
        return _along_branches(q, k, v, context, softmax)
    if context.cached and context.cached.memory:
        assert not dropped
        return _over_cache(q, k, v, context, context.cached, scale)
    kernel = kernels.serving(platform(), q, context, dropped)
    if context.zigzag:
        assert not dropped
        fast = kernel == "splash" and not context.window
        return ring.attend(q, k, v, context.segments, ring.Setup(scale, context.window, block, fast))
    if kernel == "splash":
        return kernels.splash(q, k, v, context, scale, block)
    if kernel == "cudnn":
        return checkpoint_name(kernels.cudnn(q, k, v, scale=scale, window=context.window), SAVED)
    return checkpoint_name(_reference(q, k, v, context, softmax), SAVED)


class _Tokens(NamedTuple):
    """Where some queries or keys stand: index in the row [T] (negative: none is there) and document [B or 1, T]."""

    times: jax.Array
    segments: jax.Array


def _reference(q: jax.Array, k: jax.Array, v: jax.Array, context: AttentionContext, softmax: Softmax) -> jax.Array:
    """``attend`` in plain JAX. Masks go by index in the row: inside of a document that is the order of positions."""
    length, window, segments = q.shape[2], context.window, context.segments
    if segments is None:
        segments = jnp.zeros((1, length), jnp.int32)
    tokens = _Tokens(jnp.arange(length), segments)
    if not context.causal:
        return _masked(q, k, v, (tokens, tokens), context, softmax)
    if not window or length <= 2 * window:
        return _by_rows(q, k, v, tokens, context, softmax)
    # Blocks of `window` queries, each against its own and the previous block of keys.
    pad = -length % window
    blocks = (length + pad) // window

    def split(x: jax.Array, axis: int, fill: int = 0) -> jax.Array:  # time -> (blocks, window), blocks in front
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, pad)
        x = jnp.pad(x, widths, constant_values=fill)
        x = x.reshape(*x.shape[:axis], blocks, window, *x.shape[axis + 1 :])
        return jnp.moveaxis(x, axis, 0)

    def with_previous(x: jax.Array, axis: int, fill: int = 0) -> jax.Array:
        first = jnp.full_like(x[:1], fill)
        return jnp.concatenate([jnp.concatenate([first, x[:-1]]), x], axis=axis)

    mine = _Tokens(split(tokens.times, 0, -1), split(segments, 1, -1))
    theirs = _Tokens(with_previous(mine.times, 1, -1), with_previous(mine.segments, 2, -2))
    k, v = with_previous(split(k, 2), 3), with_previous(split(v, 2), 3)

    def block(q: jax.Array, k: jax.Array, v: jax.Array, tokens: tuple[_Tokens, _Tokens], key: Any) -> jax.Array:
        return _masked(q, k, v, tokens, context, softmax._replace(key=key))

    out = jax.vmap(block)(split(q, 2), k, v, (mine, theirs), softmax.keys(blocks))
    out = jnp.moveaxis(out, 0, 2)
    return out.reshape(*q.shape[:2], length + pad, -1)[:, :, :length]


def _by_rows(
    q: jax.Array, k: jax.Array, v: jax.Array, tokens: _Tokens, context: AttentionContext, softmax: Softmax
) -> jax.Array:
    """Blocks of queries, each against the keys up to its own: not the half of the square that causality forbids."""
    length = q.shape[2]
    blocks = 8 if length >= 1024 else 4 if length >= 128 else 1
    keys = softmax.keys(blocks)
    bounds = [length * block // blocks for block in range(blocks + 1)]
    out = []
    for i, (start, stop) in enumerate(itertools.pairwise(bounds)):
        part = softmax if keys is None else softmax._replace(key=keys[i])
        mine = _Tokens(tokens.times[start:stop], tokens.segments[:, start:stop])
        seen = _Tokens(tokens.times[:stop], tokens.segments[:, :stop])
        query, key, value = q[:, :, start:stop], k[:, :, :stop], v[:, :, :stop]
        out.append(_masked(query, key, value, (mine, seen), context, part))
    return out[0] if blocks == 1 else jnp.concatenate(out, axis=2)


def _along_branches(q: jax.Array, k: jax.Array, v: jax.Array, context: AttentionContext, softmax: Softmax) -> jax.Array:
    """Causal attention along the branches of a tree."""
    assert context.branches is not None and context.positions is not None and context.causal
    mine, other = context.branches[:, :, None], context.branches[:, None, :]
    age = context.positions[:, :, None] - context.positions[:, None, :]
    mask = (age >= 0) & ((other == 0) | (other == mine))
    if context.window:
        mask &= age < context.window
    return _weighed(q, k, v, mask[:, None], softmax)


def _over_cache(
    q: jax.Array, k: jax.Array, v: jax.Array, context: AttentionContext, cached: Cached, scale: float
) -> jax.Array:
    """Causal attention of a few new tokens over the slots before them, and over each other.

    A banded layer reads its band of the cache only.
    """
    assert cached.memory is not None and context.causal
    (keys, values), slot, window = cached.memory, cached.slot, context.window
    length, slots = q.shape[2], keys.shape[2]
    first: jax.Array | int = 0
    if window and window - 1 < slots:  # the first query sees window - 1 slots before it, the others fewer
        first = jnp.clip(slot - (window - 1), 0, slots - (window - 1))
        keys, values = (jax.lax.dynamic_slice_in_dim(x, first, window - 1, axis=2) for x in (keys, values))
    new = slot + jnp.arange(length)
    old = first + jnp.arange(keys.shape[2])
    times = jnp.concatenate([old, new])
    age = new[:, None] - times
    mask = (age >= 0) & jnp.concatenate([old < slot, jnp.ones(length, bool)])
    if window:
        mask &= age < window
    mask = mask & (times >= cached.starts[:, None])[:, None, :]  # [B, T, S + T]
    scores = [jnp.einsum("bhtk,bhsk->bhts", q, x, preferred_element_type=jnp.float32) for x in (keys, k)]
    weights = jax.nn.softmax(jnp.where(mask[:, None], jnp.concatenate(scores, -1) * scale, _MASKED), axis=-1)
    past, present = jnp.split(weights.astype(q.dtype), [keys.shape[2]], axis=-1)
    return jnp.einsum("bhts,bhsk->bhtk", past, values) + jnp.einsum("bhts,bhsk->bhtk", present, v)


def _masked(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    tokens: tuple[_Tokens, _Tokens],
    context: AttentionContext,
    softmax: Softmax,
) -> jax.Array:
    """Attention of some queries over some keys; ``tokens`` says where these and those stand."""
    mine, theirs = tokens
    age = mine.times[:, None] - theirs.times[None, :]
    mask = (theirs.times >= 0)[None, :]
    if context.causal:
        mask = (age >= 0) & mask
    if context.window:
        mask &= (age if context.causal else jnp.abs(age)) < context.window
    mask = mask[None, None] & (mine.segments[:, None, :, None] == theirs.segments[:, None, None, :])
    return _weighed(q, k, v, mask, softmax)


def _weighed(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, softmax: Softmax) -> jax.Array:
    """Values weighed by the softmax of the scores where the mask, [B or 1, 1, T, S], allows."""
    scores = jnp.einsum("bhtk,bhsk->bhts", q, k, preferred_element_type=jnp.float32) * softmax.scale
    weights = jax.nn.softmax(jnp.where(mask, scores, _MASKED), axis=-1).astype(v.dtype)
    weights = dropout(weights, softmax.rate, softmax.key)
    return jnp.einsum("bhts,bhsk->bhtk", weights, v)


class SelfAttention(nnx.Module):
    """Multi-head self-attention; queries, keys and values have a projection each."""

    def __init__(self, network: cfg.Network, rngs: nnx.Rngs):
        config = network.model
        d, h, k = config.d_model, config.num_heads, config.d_head
        scales = parametrization(config)
        self.config, self.compute = config, network.compute
        self.scale = scales.attention_scale
        axes = ("embed", "heads", None)
        # Drawn as one array, as they were stored once: the same seed gives the same model as ever.
        self.query, self.key, self.value = normal_parts(rngs.params(), (d, (h, h, h), k), scales.hidden_std, axes)
        self.query_bias = constant(0.0, (h, k), ("heads", None), "bias")
        self.key_bias = constant(0.0, (h, k), ("heads", None), "bias")
        self.value_bias = constant(0.0, (h, k), ("heads", None), "bias")
        self.out = normal(rngs.params(), (h, k, d), scales.residual_std, ("heads", None, "embed"))
        self.out_bias = constant(0.0, (d,), (None,), "bias")

    def fuse(self) -> None:
        """Makes one parameter of the three projections, as ``model.fused`` does of arrays.

        For decoding, where products are so small that one costs less than three.
        """
        self.qkv = _in_one(self.query, self.key, self.value)
        self.qkv_bias = _in_one(self.query_bias, self.key_bias, self.value_bias)
        for name in ("query", "key", "value"):
            delattr(self, name)
            delattr(self, f"{name}_bias")

    def __call__(
        self, x: jax.Array, context: AttentionContext, key: jax.Array | None = None
    ) -> tuple[jax.Array, Memory | None]:
        """Attention around the residual stream.

        Args:
            x: [B, T, D].
            context: who sees whom.
            key: of the dropout on weights; None = no dropout.

        Returns:
            [B, T, D], and of a cached context the layer's cache with the new tokens in it.
        """
        rate = self.config.dropout_attention
        softmax = Softmax(self.scale, rate, key if rate > 0 else None)
        q, k, v = self._project(x, context)
        mixed = attend(q, k, v, context, softmax, self.compute.attention_block)
        memory = _extended(context.cached, (k, v), mixed) if context.cached else None
        return self._merge(mixed, context), memory

    def _project(self, x: jax.Array, context: AttentionContext) -> list[jax.Array]:
        """Queries, keys and values, [B, H, T, K] each; the sequence whole, unless the ring attends."""
        time = "time" if context.zigzag else None
        if hasattr(self, "qkv"):
            parts = self._together(x, self.qkv, time)
            biases = [Parameter(bias, axes=("heads", None), kind="bias") for bias in self.qkv_bias[...]]
        else:
            weights, biases = (self.query, self.key, self.value), [self.query_bias, self.key_bias, self.value_bias]
            if current_mesh().shape[kernels.HEAD_AXIS] > 1:
                # The gradient of x is a sum over the devices of the heads: once, and not thrice.
                parts = self._together(x, _in_one(*weights), time)
            else:
                parts = [project(x, w, self.compute.quantization) for w in weights]
        found = []
        for part, bias in zip(parts, biases, strict=True):
            part = add_bias(part.swapaxes(1, 2), bias, 1)
            found.append(checkpoint_name(constrain(part, "batch", "heads", time, None), SAVED))
        return found

    def _together(self, x: jax.Array, weights: Parameter, time: str | None) -> list[jax.Array]:
        """One product for queries, keys and values, [B, T, H, K] each, with weights [D, 3, H, K]."""
        product = constrain(project(x, weights, self.compute.quantization), "batch", time, None, "heads", None)
        # Not by indexing: its gradient is a sum of padded arrays, that of a split puts them together.
        return [part.squeeze(2) for part in jnp.split(product, 3, axis=2)]

    def _merge(self, mixed: jax.Array, context: AttentionContext) -> jax.Array:
        """Heads [B, H, T, K] back into the residual stream [B, T, D]."""
        mixed = constrain(mixed, "batch", "heads", "time" if context.zigzag else None, None)
        out = project(mixed.swapaxes(1, 2), self.out, self.compute.quantization, 2)
        return constrain(add_bias(out, self.out_bias), "batch", "sequence", None)


def _in_one(*parts: Parameter) -> Parameter:
    """Parameters [..., H, K] as one [..., 3, H, K]."""
    whole, axes = stacked([part[...] for part in parts]), stacked([part.axes for part in parts])
    return Parameter(whole, axes=axes, kind=parts[0].kind)


def _extended(cached: Cached, new: Memory, mixed: jax.Array) -> Memory:
    """A layer's cache with the keys and values [B, H, T, K] of this call in it; ``mixed`` is what attention gave."""
    if cached.memory is None:
        room = [(0, 0), (0, 0), (0, cached.slots - mixed.shape[2]), (0, 0)]
        keys, values = (_laid_out(jnp.pad(x, room)) for x in new)
        return keys, values
    slot = _once_known(mixed, cached.slot)
    keys, values = (
        _laid_out(jax.lax.dynamic_update_slice_in_dim(old, x.astype(old.dtype), slot, axis=2))
        for old, x in zip(cached.memory, new, strict=True)
    )
    return keys, values


def _laid_out(cache: jax.Array) -> jax.Array:
    return constrain(cache, "batch", "heads", None, None)


def _once_known(mixed: jax.Array, slot: jax.Array | int) -> jax.Array | int:
    """``slot``, in a form that XLA can only compute after ``mixed``.

    So the cache is read before it is written, and written in place. XLA's CPU compiler otherwise keeps the order open
    and copies the cache each step, and optimisation barriers are gone before it decides. Over several devices the
    dependence would cost a broadcast, so it is left out.
    """
    if current_mesh().size > 1:
        return slot
    return slot + (mixed[0, 0, 0, 0] > jnp.inf)  # adds 0: nothing is more than infinite
