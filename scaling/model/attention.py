"""Causal self-attention: dense, or in a local band (Sparse Transformer, arXiv 1904.10509; GPT-3, section 2.1)."""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from scaling import config as cfg
from scaling.model import kernels, ring
from scaling.model.layers import SAVED, add_bias, constant, dropout, normal, use
from scaling.model.parametrization import parametrization
from scaling.model.quantized import project
from scaling.parallel.sharding import constrain, context_devices


class Tree(NamedTuple):
    """Several continuations of one context in one row: each sees the context and itself.

    Attributes:
        positions: of each token in its text, int32 [B, T].
        branches: 0 for the context, 1, 2, ... for the continuations, -1 for padding, int32 [B, T].
    """

    positions: jax.Array
    branches: jax.Array


Memory = tuple[jax.Array, jax.Array]  # cached keys and values of one layer, [B, H, S, K] each
_MASKED = -1e30  # not -inf: a fully masked row (padding) must give finite gradients


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    scale: float,
    window: int = 0,
    segments: jax.Array | None = None,
    rate: float = 0.0,
    key: jax.Array | None = None,
    block: int = 512,
    zigzag: bool = False,
) -> jax.Array:
    """Causal attention; position t sees s with t - window < s <= t (window 0: all s <= t).

    On a TPU or a GPU by the kernel that serves the call (``kernels.serving``), else as written here; over a sequence
    in zigzag order by the ring. A window narrower than half the sequence costs its band, not the square.

    Args:
        q: queries [B, H, T, K].
        k: keys [B, H, T, K].
        v: values [B, H, T, K].
        scale: multiplies q.k.
        window: band width in positions, the own one included; 0 = dense.
        segments: document number of each token [B, T]; tokens see only their own document.
        rate: dropout rate on the weights.
        key: dropout key; None = no dropout.
        block: positions in a block of the TPU's kernel, and of the ring.
        zigzag: positions lie over the ``context`` axis in the order of ``ring.zigzag``; without dropout.

    Returns:
        [B, H, T, K], in q's dtype; scores and softmax are float32.
    """
    length, dropped = q.shape[2], key is not None and rate > 0
    if zigzag:
        length //= 2 * context_devices()
    kernel = kernels.serving(
        kernels.platform(), length, q.shape[3], q.dtype, segments=segments is not None, dropout=dropped
    )
    if zigzag:
        assert not dropped
        fast = kernel == "splash"
        return ring.attend(
            q, k, v, scale=scale, window=window, segments=segments, block=block, residuals=SAVED, kernel=fast
        )
    if kernel == "splash":
        return kernels.splash(q, k, v, scale=scale, window=window, segments=segments, block=block, residuals=SAVED)
    if kernel == "cudnn":
        return checkpoint_name(kernels.cudnn(q, k, v, scale=scale, window=window), SAVED)
    return checkpoint_name(_reference(q, k, v, scale, window, segments, rate, key), SAVED)


def _reference(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    scale: float,
    window: int,
    segments: jax.Array | None,
    rate: float,
    key: jax.Array | None,
) -> jax.Array:
    """``attend`` in plain JAX."""
    length = q.shape[2]
    t = jnp.arange(length)
    if segments is None:
        segments = jnp.zeros((1, length), jnp.int32)
    if not window or length <= 2 * window:
        return _by_rows(q, k, v, t, segments, scale, window, rate, key)
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

    times, seg = split(t, 0, -1), split(segments, 1, -1)
    k, v = with_previous(split(k, 2), 3), with_previous(split(v, 2), 3)
    key_times, key_seg = with_previous(times, 1, -1), with_previous(seg, 2, -2)
    keys = None if key is None else jax.random.split(key, blocks)

    def block(q, k, v, tq, tk, sq, sk, key):
        return _masked(q, k, v, tq, tk, sq, sk, scale, window, rate, key)

    out = jax.vmap(block)(split(q, 2), k, v, times, key_times, seg, key_seg, keys)
    out = jnp.moveaxis(out, 0, 2)
    return out.reshape(*q.shape[:2], length + pad, -1)[:, :, :length]


def _by_rows(q, k, v, t, segments, scale, window, rate, key):
    """Blocks of queries, each against the keys up to its own: not the half of the square that causality forbids."""
    length = q.shape[2]
    blocks = 8 if length >= 1024 else 4 if length >= 128 else 1
    keys = [None] * blocks if key is None else jax.random.split(key, blocks)
    bounds = [length * block // blocks for block in range(blocks + 1)]
    out = []
    for start, stop, block_key in zip(bounds, bounds[1:], keys, strict=False):
        mine, seen = slice(start, stop), slice(0, stop)
        out.append(
            _masked(
                q[:, :, mine],
                k[:, :, seen],
                v[:, :, seen],
                t[mine],
                t[seen],
                segments[:, mine],
                segments[:, seen],
                scale,
                window,
                rate,
                block_key,
            )
        )
    return out[0] if blocks == 1 else jnp.concatenate(out, axis=2)


def attend_tree(q: jax.Array, k: jax.Array, v: jax.Array, *, tree: Tree, scale: float, window: int = 0) -> jax.Array:
    """Causal attention along the branches of a tree; shapes, scale and window as in ``attend``."""
    mine, other = tree.branches[:, :, None], tree.branches[:, None, :]
    age = tree.positions[:, :, None] - tree.positions[:, None, :]
    mask = (age >= 0) & ((other == 0) | (other == mine))
    if window:
        mask &= age < window
    return _weighed(q, k, v, mask[:, None], scale, 0.0, None)


def attend_cached(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    memory: Memory,
    slot: jax.Array,
    starts: jax.Array,
    *,
    scale: float,
    window: int = 0,
) -> jax.Array:
    """Causal attention of a few new positions over a cache of those before them, and over each other.

    A banded layer reads its band of the cache only.

    Args:
        q: queries of the slots ``slot``, ``slot + 1``, ..., [B, H, T, K].
        k: their keys [B, H, T, K].
        v: their values [B, H, T, K].
        memory: keys and values [B, H, S, K] of the slots before ``slot``; what lies behind is not looked at.
        slot: where the first query stands, int32 scalar.
        starts: first slot of each row that is not padding, int32 [B].
        scale: multiplies q.k.
        window: band width as in ``attend``; 0 = dense.

    Returns:
        [B, H, T, K], in q's type; scores and softmax are float32.
    """
    keys, values = memory
    length, slots = q.shape[2], keys.shape[2]
    first: jax.Array | int = 0
    if window and window - 1 < slots:  # the first query sees window - 1 slots before it, the others fewer
        first = jnp.clip(slot - (window - 1), 0, slots - (window - 1))
        keys, values = (jax.lax.dynamic_slice_in_dim(x, first, window - 1, axis=2) for x in memory)
    new = slot + jnp.arange(length)
    old = first + jnp.arange(keys.shape[2])
    times = jnp.concatenate([old, new])
    age = new[:, None] - times
    mask = (age >= 0) & jnp.concatenate([old < slot, jnp.ones(length, bool)])
    if window:
        mask &= age < window
    mask = mask & (times >= starts[:, None])[:, None, :]  # [B, T, S + T]
    scores = [jnp.einsum("bhtk,bhsk->bhts", q, x, preferred_element_type=jnp.float32) for x in (keys, k)]
    weights = jax.nn.softmax(jnp.where(mask[:, None], jnp.concatenate(scores, -1) * scale, _MASKED), axis=-1)
    past, present = jnp.split(weights.astype(q.dtype), [keys.shape[2]], axis=-1)
    return jnp.einsum("bhts,bhsk->bhtk", past, values) + jnp.einsum("bhts,bhsk->bhtk", present, v)


def _masked(q, k, v, tq, tk, sq, sk, scale, window, rate, key):
    """Attention of queries at times tq [T] over keys at times tk [S]; segments [B or 1, T] and [B or 1, S]."""
    age = tq[:, None] - tk[None, :]
    mask = (age >= 0) & (tk >= 0)[None, :]
    if window:
        mask &= age < window
    mask = mask[None, None] & (sq[:, None, :, None] == sk[:, None, None, :])
    return _weighed(q, k, v, mask, scale, rate, key)


def _weighed(q, k, v, mask, scale, rate, key):
    """Values weighed by the softmax of the scores where the mask, [B or 1, 1, T, S], allows."""
    scores = jnp.einsum("bhtk,bhsk->bhts", q, k, preferred_element_type=jnp.float32) * scale
    weights = jax.nn.softmax(jnp.where(mask, scores, _MASKED), axis=-1)
    weights = dropout(weights.astype(v.dtype), rate, key)
    return jnp.einsum("bhts,bhsk->bhtk", weights, v)


class SelfAttention(nnx.Module):
    """Multi-head self-attention with one fused input projection."""

    def __init__(self, network: cfg.Network, rngs: nnx.Rngs):
        config = network.model
        d, h, k = config.d_model, config.num_heads, config.d_head
        scales = parametrization(config)
        self.config, self.compute = config, network.compute
        self.scale = scales.attention_scale
        self.qkv = normal(rngs.params(), (d, 3, h, k), scales.hidden_std, ("embed", None, "heads", None))
        self.qkv_bias = constant(0.0, (3, h, k), (None, "heads", None), "bias")
        self.out = normal(rngs.params(), (h, k, d), scales.residual_std, ("heads", None, "embed"))
        self.out_bias = constant(0.0, (d,), (None,), "bias")

    def __call__(
        self,
        x: jax.Array,
        window: int,
        segments: jax.Array | None = None,
        key: jax.Array | None = None,
        tree: Tree | None = None,
        zigzag: bool = False,
    ) -> jax.Array:
        """[B, T, D] to [B, T, D]; ``window`` 0 = dense; with a tree, neither segments nor dropout."""
        if tree is not None:
            return self._merge(attend_tree(*self._project(x), tree=tree, scale=self.scale, window=window))
        mixed = attend(
            *self._project(x, zigzag),
            scale=self.scale,
            window=window,
            segments=segments,
            rate=self.config.dropout_attention,
            key=key,
            block=self.compute.attention_block,
            zigzag=zigzag,
        )
        return self._merge(mixed, zigzag)

    def prefill(self, x: jax.Array, window: int, starts: jax.Array, slots: int) -> tuple[jax.Array, Memory]:
        """Attention among the first tokens of each row, [B, T, D] to [B, T, D], and their cache of ``slots`` slots.

        Rows are padded at the front: row b begins at position ``starts[b]``.
        """
        q, k, v = self._project(x)
        segments = (jnp.arange(x.shape[1]) >= starts[:, None]).astype(jnp.int32)
        mixed = attend(q, k, v, scale=self.scale, window=window, segments=segments, block=self.compute.attention_block)
        room = [(0, 0), (0, 0), (0, slots - x.shape[1]), (0, 0)]
        return self._merge(mixed), (_laid_out(jnp.pad(k, room)), _laid_out(jnp.pad(v, room)))

    def extend(
        self, x: jax.Array, window: int, memory: Memory, slot: jax.Array, starts: jax.Array
    ) -> tuple[jax.Array, Memory]:
        """Attention of tokens at slots ``slot``, ... over the cache, to which they are added."""
        q, k, v = self._project(x)
        mixed = attend_cached(q, k, v, memory, slot, starts, scale=self.scale, window=window)
        slot = _once_known(mixed, slot)
        keys, values = (
            _laid_out(jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), slot, axis=2))
            for old, new in zip(memory, (k, v), strict=True)
        )
        return self._merge(mixed), (keys, values)

    def _project(self, x: jax.Array, zigzag: bool = False) -> Iterable[jax.Array]:
        """Queries, keys and values, [B, H, T, K] each; the sequence whole, unless the ring attends."""
        time = "time" if zigzag else None
        if self._apart(x):
            # One product each, whose results the kernel takes as they are: nothing to cut apart and put together.
            weights = jnp.split(use(self.qkv, x.dtype), 3, axis=1)
            biases = jnp.split(use(self.qkv_bias, jnp.dtype(jnp.float32)), 3)
            for w, bias in zip(weights, biases, strict=True):
                part = jnp.tensordot(x, w.squeeze(1), 1).swapaxes(1, 2)
                part = (part.astype(jnp.float32) + bias.swapaxes(0, 1)).astype(x.dtype)
                yield checkpoint_name(constrain(part, "batch", "heads", time, None), SAVED)
            return
        qkv = project(x, self.qkv, self.compute.quantization).transpose(2, 0, 3, 1, 4)
        qkv = add_bias(qkv, self.qkv_bias, 1, 3)
        qkv = checkpoint_name(constrain(qkv, None, "batch", "heads", time, None), SAVED)
        # Not by indexing: its gradient is a sum of padded arrays, that of a split puts them together.
        yield from (part.squeeze(0) for part in jnp.split(qkv, 3))

    def _apart(self, x: jax.Array) -> bool:
        """Whether queries, keys and values had better come from a product each.

        On a TPU, unless there is a single token, for which it is the weights that would be cut apart, or heads are
        sharded: then the gradient of x, a sum of three, would be reduced over their devices twice.
        """
        whole = jax.sharding.get_abstract_mesh().shape.get(kernels.HEAD_AXIS, 1) == 1
        return self.compute.quantization == "none" and kernels.platform() == "tpu" and whole and x.shape[1] > 1

    def _merge(self, mixed: jax.Array, zigzag: bool = False) -> jax.Array:
        """Heads [B, H, T, K] back into the residual stream [B, T, D]."""
        mixed = constrain(mixed, "batch", "heads", "time" if zigzag else None, None)
        out = project(mixed.swapaxes(1, 2), self.out, self.compute.quantization, 2)
        return constrain(add_bias(out, self.out_bias), "batch", "sequence", None)


def _laid_out(cache: jax.Array) -> jax.Array:
    return constrain(cache, "batch", "heads", None, None)


def _once_known(mixed: jax.Array, slot: jax.Array) -> jax.Array:
    """``slot``, in a form that XLA can only compute after ``mixed``.

    So the cache is read before it is written, and written in place. XLA's CPU compiler otherwise keeps the order open
    and copies the cache each step, and optimisation barriers are gone before it decides. Over a mesh the dependence
    would cost a broadcast, so it is left out.
    """
    if not jax.sharding.get_abstract_mesh().empty:
        return slot
    return slot + (mixed[0, 0, 0, 0] > jnp.inf)  # adds 0: nothing is more than infinite
