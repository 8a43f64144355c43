"""Attention as a function: dense, banded or strided (Sparse Transformer, arXiv 1904.10509; GPT-3, section 2.1).

Heads of keys and values may be fewer than those of queries, each for a group of them (arXiv 2305.13245): N below.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from scaling.config.remat import ATTENTION
from scaling.model import kernels, ring
from scaling.model.context import AttentionContext
from scaling.model.layers import dropout
from scaling.model.positions import relative_buckets
from scaling.model.rounded import Kept, factor, scaled
from scaling.parallel.sharding import platform

_MASKED = -1e30  # not -inf: a fully masked row (padding) must give finite gradients


class Softmax(NamedTuple):
    """How scores become weights.

    Attributes:
        scale: multiplies q.k.
        rate: of the dropout on the weights.
        key: of the dropout; None = no dropout.
        slopes: of ALiBi, one a head: a score falls by so much with each position of distance; () = none.
        relative: added to scores by bucket of distance (``positions.relative_buckets``), float32 [buckets, H]; None.
        distance: from which on all are in the last bucket.
        causal: the buckets are of keys before their query alone.
        added: to the products q.k before they are scaled, float32 [B or 1, H, T, S]: scores by content and position.
    """

    scale: float
    rate: float = 0.0
    key: jax.Array | None = None
    slopes: tuple[float, ...] = ()
    relative: jax.Array | None = None
    distance: int = 128
    causal: bool = True
    added: jax.Array | None = None

    @property
    def plain(self) -> bool:
        """Whether weights are the softmax of scaled scores and nothing else."""
        return not self.slopes and self.relative is None and self.added is None and self.key is None

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
    stacked: bool = False,
) -> jax.Array:
    """Attention among the tokens of a call, and over what is cached before them.

    On a TPU or a GPU by the kernel that serves the call (``kernels.serving``), else as written here; over a sequence
    in zigzag order by the ring. A window narrower than half the sequence costs its band, not the square.

    Args:
        q: queries [B, H, T, K].
        k: keys [B, N, T, K]; N divides H.
        v: values [B, N, T, K].
        context: who sees whom.
        softmax: its dropout is for texts that are neither cached nor branched nor in zigzag order.
        block: positions in a block of the TPU's kernel, and of the ring.
        stacked: whether every layer keeps q, k and v for the backward pass; only the TPU's kernel asks.

    Returns:
        [B, H, T, K], in q's dtype; scores and softmax are float32.
    """
    if context.branches is not None:
        assert softmax.key is None
        return _along_branches(q, k, v, context, softmax)
    if context.cached and context.cached.memory:
        assert softmax.key is None
        return _over_cache(q, k, v, context, softmax)
    kernel = kernels.serving(platform(), q, context, softmax.plain)
    if context.zigzag:
        assert softmax.plain
        fast = kernel == "flash" and not context.window
        return ring.attend(q, k, v, context.segments, ring.Setup(softmax.scale, context.window, block, fast))
    if kernel == "flash":
        return kernels.flash_attention(q, k, v, context, softmax.scale, block, stacked)
    if kernel == "cudnn":
        return checkpoint_name(kernels.cudnn(q, k, v, scale=softmax.scale, window=context.window), ATTENTION)
    return checkpoint_name(_reference(q, k, v, context, softmax), ATTENTION)


def across(
    q: jax.Array, k: Kept, v: Kept, segments: tuple[jax.Array | None, jax.Array | None], softmax: Softmax
) -> jax.Array:
    """Attention of the tokens of one text over those of another: without order, so without positions.

    Args:
        q: queries [B, H, T, K].
        k: keys [B, N, S, K]; N divides H.
        v: values [B, N, S, K].
        segments: of queries, int32 [B, T], and of keys, int32 [B, S]; None = all are 0. A query sees those of its own.
        softmax: plain, but for its dropout.

    Returns:
        [B, H, T, K], in q's dtype; scores and softmax are float32.
    """
    mine, theirs = (
        jnp.zeros((1, x.shape[2]), jnp.int32) if found is None else found
        for x, found in zip((q, k), segments, strict=True)
    )
    mask = mine[:, None, :, None] == theirs[:, None, None, :]
    return checkpoint_name(_weighed(q, k, v, mask, jnp.zeros((), jnp.int32), softmax), ATTENTION)


class _Tokens(NamedTuple):
    """Where queries or keys stand: index in the row [T] (negative: none is there), document and order [B or 1, T]."""

    times: jax.Array
    segments: jax.Array
    order: jax.Array | None = None


def _reference(q: jax.Array, k: jax.Array, v: jax.Array, context: AttentionContext, softmax: Softmax) -> jax.Array:
    """``attend`` in plain JAX. Masks go by index in the row: inside of a document that is the order of positions."""
    length, window, segments = q.shape[2], context.window, context.segments
    if segments is None:
        segments = jnp.zeros((1, length), jnp.int32)
    tokens = _Tokens(jnp.arange(length), segments)
    if not context.causal or softmax.added is not None:
        return _masked(q, k, v, _all_seen(tokens, k.shape[2], context), context, softmax)
    if not window or length <= 2 * window:
        return _by_rows(q, k, v, tokens, context, softmax)
    if context.strided:
        return _strided(q, k, v, segments, context, softmax)
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


def _all_seen(tokens: _Tokens, keys: int, context: AttentionContext) -> tuple[_Tokens, _Tokens]:
    """Where the tokens of a call stand, and where so many keys do: their own, or those of a content."""
    tokens, content, times = tokens._replace(order=context.order), context.content, jnp.arange(keys)
    if content is None:
        return tokens, tokens
    documents = jnp.zeros((1, keys), jnp.int32) if content.segments is None else content.segments
    return tokens._replace(times=times[-len(tokens.times) :]), _Tokens(times, documents, content.order)


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


def _strided(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, context: AttentionContext, softmax: Softmax
) -> jax.Array:
    """A band and every ``window``-th position before it, by T (2 W + T / W) scores and not by T^2.

    The row is cut into J blocks of W tokens. Token r of a block sees its own block and the one before it, as far as the
    band reaches (the near keys), and token r of each block before (the far keys).
    """
    (rows, heads, length, features), width = q.shape, context.window
    groups = k.shape[1]
    count = -(-length // width)

    def blocks(x: jax.Array, axis: int) -> jax.Array:
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, count * width - length)
        return jnp.pad(x, widths).reshape(*x.shape[:axis], count, width, *x.shape[axis + 1 :])

    def near(x: jax.Array, axis: int) -> jax.Array:  # with the block before
        before = jnp.roll(x, 1, axis)
        return jnp.concatenate([before, x], axis + 1)

    q = blocks(q, 2).reshape(rows, groups, heads // groups, count, width, features)
    k, v, documents = blocks(k, 2), blocks(v, 2), blocks(segments, 1)
    index, inside = jnp.arange(count)[:, None, None], jnp.arange(width)[:, None]
    ages = inside + width - jnp.arange(2 * width), width * (index - jnp.arange(count))
    seen_near = (ages[0] >= 0) & (ages[0] < width) & (index * width + inside >= ages[0])
    same_near = documents[:, :, :, None] == near(documents, 1)[:, :, None, :]
    same_far = documents[:, :, :, None] == documents.swapaxes(1, 2)[:, None]
    mask = jnp.concatenate([seen_near & same_near, (ages[1] > 0) & same_far], -1)
    age = jnp.concatenate([jnp.broadcast_to(x, (count, width, x.shape[-1])) for x in ages], -1)
    near_k, near_v = near(k, 2), near(v, 2)
    scores = [
        jnp.einsum("bngjrk,bnjsk->bngjrs", q, near_k, preferred_element_type=jnp.float32),
        jnp.einsum("bngjrk,bnirk->bngjri", q, k, preferred_element_type=jnp.float32),
    ]
    flat = jnp.concatenate(scores, -1).reshape(rows, heads, count * width, -1)
    mask, age = (x.reshape(*x.shape[:-3], count * width, -1) for x in (mask, age))
    weights = _weights(flat, mask[:, None], age, softmax).astype(v.dtype)
    weights = dropout(weights, softmax.rate, softmax.key)
    weights = weights.reshape(*q.shape[:-1], -1)
    out = jnp.einsum("bngjrs,bnjsk->bngjrk", weights[..., : 2 * width], near_v)
    out += jnp.einsum("bngjri,bnirk->bngjrk", weights[..., 2 * width :], v)
    return out.reshape(rows, heads, count * width, features)[:, :, :length]


def _along_branches(q: jax.Array, k: jax.Array, v: jax.Array, context: AttentionContext, softmax: Softmax) -> jax.Array:
    """Causal attention along the branches of a tree; its trunk sees itself on both sides if the context says so."""
    assert context.branches is not None and context.positions is not None
    mine, other = context.branches[:, :, None], context.branches[:, None, :]
    age = context.positions[:, :, None] - context.positions[:, None, :]
    before = _in_sight(age, context) if context.causal else (age >= 0) | (mine == 0)
    mask = before & ((other == 0) | (other == mine))
    return _weighed(q, k, v, mask[:, None], age, softmax)


def _over_cache(q: jax.Array, k: jax.Array, v: jax.Array, context: AttentionContext, softmax: Softmax) -> jax.Array:
    """Causal attention of a few new tokens over the slots before them, and over each other.

    A banded layer reads its band of the cache only, a strided one for a single token also each slot of its stride.
    Where each row has a slot of its own, all of the cache is read.
    """
    cached = context.cached
    assert cached is not None and cached.memory is not None and context.causal
    (keys, values), slot, window = cached.memory, cached.slot, context.window
    length, slots = q.shape[2], keys.shape[2]
    if jnp.ndim(slot):
        return _over_uneven_cache(q, k, v, context, softmax)
    new, old = slot + jnp.arange(length), jnp.arange(slots)
    if window and window - 1 < slots and (length == 1 or not context.strided):
        # The first query sees window - 1 slots before it, the others fewer.
        first = jnp.clip(slot - (window - 1), 0, slots - (window - 1))
        old = first + jnp.arange(window - 1)
        memory = (keys, values)
        near = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, window - 1, axis=2), memory)
        if context.strided:
            far = slot - window * jnp.arange(1, -(-slots // window) + 1)
            old = jnp.concatenate([old, far])
            # Slots that are none are masked, wherever they are read from; that of the band is not read again.
            beyond = jax.tree.map(lambda x: jnp.take(x, jnp.maximum(far, 0), axis=2), memory)
            near = jax.tree.map(lambda *pair: jnp.concatenate(pair, axis=2), near, beyond)
        keys, values = near
    times = jnp.concatenate([old, new])
    age = new[:, None] - times
    mask = _in_sight(age, context) & jnp.concatenate([(old >= 0) & (old < slot), jnp.ones(length, bool)])
    mask = mask & (times >= cached.starts[:, None])[:, None, :]  # [B, T, S + T]
    return _past_and_present(q, (keys, k), (values, v), mask, age, softmax)


def _over_uneven_cache(
    q: jax.Array, k: jax.Array, v: jax.Array, context: AttentionContext, softmax: Softmax
) -> jax.Array:
    """``_over_cache`` where each row's new tokens begin at a slot of their own."""
    cached = context.cached
    assert cached is not None and cached.memory is not None
    keys, values = cached.memory
    slot, length, slots = jnp.asarray(cached.slot)[:, None], q.shape[2], keys.shape[2]
    new, old = slot + jnp.arange(length), jnp.broadcast_to(jnp.arange(slots), (len(slot), slots))
    times = jnp.concatenate([old, new], -1)
    filled = jnp.concatenate([old < slot, jnp.ones(new.shape, bool)], -1) & (times >= cached.starts[:, None])
    age = new[:, :, None] - times[:, None, :]
    mask = _in_sight(age, context) & filled[:, None, :]
    return _past_and_present(q, (keys, k), (values, v), mask, age, softmax)


def _past_and_present(
    q: jax.Array,
    k: tuple[Kept, Kept],
    v: tuple[Kept, Kept],
    mask: jax.Array,
    age: jax.Array,
    softmax: Softmax,
) -> jax.Array:
    """Attention over S slots of a cache and T new tokens at once, without putting them together."""
    scores = jnp.concatenate([_scores(q, part) for part in k], -1)
    weights = _weights(scores, mask[:, None], age, softmax).astype(q.dtype)
    past, present = jnp.split(weights, [k[0].shape[2]], axis=-1)
    return _mixed(past, v[0]) + _mixed(present, v[1])


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
    mask = _in_sight(age, context) & (theirs.times >= 0)[None, :]
    mask = mask[None, None] & (mine.segments[:, None, :, None] == theirs.segments[:, None, None, :])
    if mine.order is not None and theirs.order is not None:
        mask &= theirs.order[:, None, None, :] <= mine.order[:, None, :, None]
    mixed = _weighed(q, k, v, mask, age, softmax)
    if context.content is None or context.content.places is None:
        return mixed
    return jnp.where(mask.any(-1, keepdims=True), mixed, 0)  # the first token of an order sees nothing


def _in_sight(age: jax.Array, context: AttentionContext) -> jax.Array:
    """Whether a key that is so many positions before its query may be seen, by causality and window."""
    mask = age >= 0 if context.causal else jnp.ones_like(age, bool)
    if context.window:
        near = (age if context.causal else jnp.abs(age)) < context.window
        mask &= near | (age % context.window == 0) if context.strided else near
    return mask


def _weighed(q: jax.Array, k: Kept, v: Kept, mask: jax.Array, age: jax.Array, softmax: Softmax) -> jax.Array:
    """Values weighed by the softmax of the scores where the mask [B or 1, 1, T, S] allows; age [T, S] or [B, T, S]."""
    weights = _weights(_scores(q, k), mask, age, softmax).astype(q.dtype)
    weights = dropout(weights, softmax.rate, softmax.key)
    return _mixed(weights, v)


def _weights(scores: jax.Array, mask: jax.Array, age: jax.Array, softmax: Softmax) -> jax.Array:
    scores = (scores if softmax.added is None else scores + softmax.added) * softmax.scale
    if softmax.slopes:
        slopes = np.asarray(softmax.slopes, np.float32)[:, None, None]
        scores = scores - slopes * age[..., None, :, :].astype(jnp.float32)
    if softmax.relative is not None:
        buckets = relative_buckets(age, len(softmax.relative), softmax.distance, softmax.causal)
        scores = scores + jnp.moveaxis(softmax.relative[buckets], -1, -3)
    return jax.nn.softmax(jnp.where(mask, scores, _MASKED), axis=-1)


def _scores(q: jax.Array, k: Kept) -> jax.Array:
    """q.k, float32 [B, H, T, S]: the queries of a group's heads one after the other against the group's keys."""
    grouped = q.reshape(*k.shape[:2], -1, q.shape[3])
    scores = jnp.einsum("bntk,bnsk->bnts", grouped, factor(k, q.dtype), preferred_element_type=jnp.float32)
    return scaled(scores, k, 2).reshape(*q.shape[:3], k.shape[2])


def _mixed(weights: jax.Array, v: Kept) -> jax.Array:
    """Values [B, N, S, K] by weights [B, H, T, S]: [B, H, T, K]."""
    rows = weights.shape[1] // v.shape[1] * weights.shape[2]
    # Each token's scale goes to its weight.
    grouped = scaled(weights.reshape(*v.shape[:2], rows, v.shape[2]), v, 2)
    return jnp.einsum("bnts,bnsk->bntk", grouped, factor(v, weights.dtype)).reshape(*weights.shape[:3], -1)
