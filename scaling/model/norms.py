"""Normalisation of the features of each token, in float32."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from scaling.config import schema as cfg
from scaling.config.remat import NORMS
from scaling.model.layers import constant


class LayerNorm(nnx.Module):
    """Layer normalisation (arXiv 1607.06450), with or without a bias."""

    def __init__(self, features: int, epsilon: float, biased: bool = True):
        self.gain = constant(1.0, (features,), (None,), "gain")
        if biased:
            self.bias = constant(0.0, (features,), (None,), "bias")
        self.epsilon, self.biased = epsilon, biased

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] to [..., D] of the same dtype."""
        wide = x.astype(jnp.float32)
        # Two numbers a token to keep, two sums over its features not to take again.
        mean = checkpoint_name(wide.mean(-1), NORMS)[..., None]
        if x.dtype == jnp.bfloat16:  # both sums in one pass; what that costs is less than the input's own rounding
            variance = jnp.maximum(jnp.square(wide).mean(-1) - jnp.square(mean[..., 0]), 0)
        else:
            variance = jnp.square(wide - mean).mean(-1)
        scale = jax.lax.rsqrt(checkpoint_name(variance, NORMS)[..., None] + self.epsilon)
        normal = (wide - mean) * scale * self.gain[...]
        return (normal + self.bias[...] if self.biased else normal).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Root mean square normalisation (arXiv 1910.07467)."""

    def __init__(self, features: int, epsilon: float):
        self.gain = constant(1.0, (features,), (None,), "gain")
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] to [..., D] of the same dtype."""
        wide = x.astype(jnp.float32)
        square = checkpoint_name(jnp.square(wide).mean(-1), NORMS)[..., None]
        return (wide * jax.lax.rsqrt(square + self.epsilon) * self.gain[...]).astype(x.dtype)


def make_norm(model: cfg.Model, features: int) -> LayerNorm | RMSNorm:
    """The norm of a model (``norm_kind``) over this many features."""
    if model.norm_kind == "rms":
        return RMSNorm(features, model.norm_epsilon)
    return LayerNorm(features, model.norm_epsilon, model.norm_bias)
