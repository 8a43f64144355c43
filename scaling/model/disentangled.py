"""Disentangled attention: scores of contents with distances (DeBERTa: arXiv 2006.03654, section 3.1).

To the product of a query with a key are added that of the query with a key made of their distance, and that of the key
with a query made of it. All layers share a table of distances, and each has projections of its own.

The released code differs from equation 4 in that both products take the row of the distance from key to query. So does
this. It has dropout on the table, too, which is left out here, as is the enhanced mask decoder of section 3.2.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scaling.config import schema as cfg
from scaling.model.layers import constant, normal, product, use
from scaling.model.parametrization import parametrization
from scaling.parallel.sharding import constrain


class Projections(nnx.Module):
    """Of distances to keys and to queries, of a layer that does not take those of its tokens."""

    def __init__(self, config: cfg.Model, rngs: nnx.Rngs):
        shape, axes = (config.d_model, config.num_heads, config.d_head), ("embed", "heads", None)
        by, std = config.disentangled, parametrization(config).hidden_std
        if by.content_to_position:
            self.key = normal(rngs.params(), shape, std, axes)
            if config.has_key_bias:
                self.key_bias = constant(0.0, shape[1:], axes[1:], "bias")
        if by.position_to_content:
            self.query = normal(rngs.params(), shape, std, axes)
            if config.qkv_bias:
                self.query_bias = constant(0.0, shape[1:], axes[1:], "bias")


def rows(length: int, config: cfg.Model) -> np.ndarray:
    """The row of the table for each query and key, int [T, T], as transformers 5 has them.

    With buckets, half of those of a side are single distances, and the rest grow geometrically up to the largest one.
    Row ``config.distances`` is that of distance 0, and later keys have rows before it.
    """
    span, buckets = config.distances, config.disentangled.buckets
    age = np.arange(length)[:, None] - np.arange(length)
    if buckets:
        half, farthest = buckets // 2, config.disentangled.distance or config.context_length
        # In float32, whose rounding decides at the bounds of buckets.
        far = np.maximum(np.abs(age), half).astype(np.float32) / np.float32(half)
        steps = np.log(far) / np.log(np.float32((farthest - 1) / half)) * np.float32(half - 1)
        age = np.where(np.abs(age) <= half, age, np.sign(age) * (np.ceil(steps) + half)).astype(int)
    return np.clip(age + span, 0, 2 * span - 1)


def scores(q: jax.Array, k: jax.Array, table: jax.Array, projections: Any, config: cfg.Model) -> jax.Array:
    """What is added to q.k before it is scaled.

    Args:
        q: queries [B, H, T, K].
        k: keys [B, H, T, K].
        table: of distances [2 R, D], R rows for each side.
        projections: has ``key`` and ``query`` [D, H, K], and maybe their biases.
        config: resolved.

    Returns:
        float32 [B, H, T, T].
    """
    places = rows(q.shape[2], config)
    first, by = places.min(), config.disentangled
    table = table[first : places.max() + 1]  # no text has other distances

    def products(x: jax.Array, name: str, places: np.ndarray) -> jax.Array:
        made = product(table, use(getattr(projections, name), table.dtype))
        if (bias := getattr(projections, f"{name}_bias", None)) is not None:
            made = made + use(bias, table.dtype)
        made = constrain(made, None, "heads", None)
        each = jnp.einsum("bhtk,rhk->bhtr", x, made, preferred_element_type=jnp.float32)
        return jnp.take_along_axis(each, jnp.asarray(places - first)[None, None], axis=-1)

    found = jnp.zeros((), jnp.float32)
    if by.content_to_position:
        found = found + products(q, "key", places)
    if by.position_to_content:
        found = found + products(k, "query", places.T).swapaxes(2, 3)
    return constrain(found, "batch", "heads", None, None)
