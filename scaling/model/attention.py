"""Causal self-attention: dense, or in a local band (Sparse Transformer, arXiv 1904.10509; GPT-3, section 2.1)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from scaling import config as cfg
from scaling.model.layers import add_bias, constant, dropout, normal, use
from scaling.model.parametrization import parametrization
from scaling.parallel.sharding import constrain

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
) -> jax.Array:
    """Causal attention; position t sees s with t - window < s <= t (window 0: all s <= t).

    A window narrower than half the sequence costs its band, not the square.

    Args:
        q: queries [B, H, T, K].
        k: keys [B, H, T, K].
        v: values [B, H, T, K].
        scale: multiplies q.k.
        window: band width in positions, the own one included; 0 = dense.
        segments: document number of each token [B, T]; tokens see only their own document.
        rate: dropout rate on the weights.
        key: dropout key; None = no dropout.

    Returns:
        [B, H, T, K], in q's dtype; scores and softmax are float32.
    """
    length = q.shape[2]
    t = jnp.arange(length)
    if segments is None:
        segments = jnp.zeros((1, length), jnp.int32)
    if not window or length <= 2 * window:
        return _masked(q, k, v, t, t, segments, segments, scale, window, rate, key)
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


def _masked(q, k, v, tq, tk, sq, sk, scale, window, rate, key):
    """Attention of queries at times tq [T] over keys at times tk [S]; segments [B or 1, T] and [B or 1, S]."""
    age = tq[:, None] - tk[None, :]
    mask = (age >= 0) & (tk >= 0)[None, :]
    if window:
        mask &= age < window
    mask = mask[None, None] & (sq[:, None, :, None] == sk[:, None, None, :])
    scores = jnp.einsum("bhtk,bhsk->bhts", q, k, preferred_element_type=jnp.float32) * scale
    weights = jax.nn.softmax(jnp.where(mask, scores, _MASKED), axis=-1)
    weights = dropout(weights.astype(v.dtype), rate, key)
    return jnp.einsum("bhts,bhsk->bhtk", weights, v)


class SelfAttention(nnx.Module):
    """Multi-head self-attention with one fused input projection."""

    def __init__(self, config: cfg.Model, rngs: nnx.Rngs):
        d, h, k = config.d_model, config.num_heads, config.d_head
        scales = parametrization(config)
        self.config = config
        self.scale = scales.attention_scale
        self.qkv = normal(rngs.params(), (d, 3, h, k), scales.hidden_std, ("embed", None, "heads", None))
        self.qkv_bias = constant(0.0, (3, h, k), (None, "heads", None), "bias")
        self.out = normal(rngs.params(), (h, k, d), scales.residual_std, ("heads", None, "embed"))
        self.out_bias = constant(0.0, (d,), (None,), "bias")

    def __call__(
        self, x: jax.Array, window: int, segments: jax.Array | None = None, key: jax.Array | None = None
    ) -> jax.Array:
        """[B, T, D] to [B, T, D]; ``window`` 0 = dense."""
        qkv = jnp.einsum("btd,dchk->cbhtk", x, use(self.qkv, x.dtype))
        qkv = add_bias(qkv, self.qkv_bias, 1, 3)
        qkv = checkpoint_name(constrain(qkv, None, "batch", "heads", None, None), "projections")
        mixed = attend(
            *qkv,
            scale=self.scale,
            window=window,
            segments=segments,
            rate=self.config.dropout_attention,
            key=key,
        )
        mixed = checkpoint_name(constrain(mixed, "batch", "heads", None, None), "projections")
        out = jnp.einsum("bhtk,hkd->btd", mixed, use(self.out, x.dtype))
        return constrain(add_bias(out, self.out_bias), "batch", "sequence", None)
