"""Relative attention and recurrence of Transformer-XL (arXiv 1901.02860), also with the types of XLNet (1906.08237)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from scaling.config import schema as cfg
from scaling.model.context import AttentionContext, Content
from scaling.model.layers import add_bias, normal, product, use
from scaling.model.positions import sinusoids

# (block, its input, context, dropout key) to the block's output and the states of which its keys are made, [B, T, D].
KeepingLayer = Callable[[Any, jax.Array, AttentionContext, jax.Array | None], tuple[jax.Array, jax.Array]]


class RelativeScores(nnx.Module):
    """What a layer adds to q.k by distance, and by whether two tokens have the same type (``positions="xlnet"``)."""

    def __init__(self, config: cfg.Model, rngs: nnx.Rngs):
        heads, axes, std = (config.num_heads, config.d_head), ("heads", None), config.init_std
        self.position = normal(rngs.params(), (config.d_model, *heads), std, ("embed", *axes))
        self.content_bias = normal(rngs.params(), heads, std, axes, "bias")
        self.position_bias = normal(rngs.params(), heads, std, axes, "bias")
        if config.positions == "xlnet":
            self.type_bias = normal(rngs.params(), heads, std, axes, "bias")
            self.types = normal(rngs.params(), (2, *heads), std, (None, *axes), "position")

    def __call__(self, q: jax.Array, keys: int, context: AttentionContext) -> tuple[jax.Array, jax.Array]:
        """Queries [B, H, T, K] with the bias u, and what is added to their products with S keys, [B, H, T, S] float32.

        These are (q + v) W R_{i-j} of section 3.3, and (q + b) s of XLNet's section 2.5; u, v and b are of each layer.
        """
        weights, ages = use(self.position, q.dtype), _ages(q, context)
        added = by_distance(add_bias(q, self.position_bias, 1), weights, keys, ages, context.causal)
        theirs = context.content.types if context.content else context.types
        if hasattr(self, "types") and context.types is not None and theirs is not None:
            query, types = add_bias(q, self.type_bias, 1), use(self.types, q.dtype)
            each = jnp.einsum("bhtk,shk->bhts", query, types, preferred_element_type=jnp.float32)
            same = context.types[:, None, :, None] == theirs[:, None, None, :]
            added = added + jnp.where(same, each[..., :1], each[..., 1:])
        return add_bias(q, self.content_bias, 1), added


def by_distance(q: jax.Array, weights: jax.Array, keys: int, ages: jax.Array | None, causal: bool) -> jax.Array:
    """Products of queries with projected sinusoids of their distance to each key, float32 [B, H, T, S].

    Args:
        q: with their bias, [B, H, T, K].
        weights: W, [D, H, K].
        keys: S.
        ages: positions from each key to each query, int32 [B or 1, T, S]; None = the queries are the last T of S tokens
            in a row, so that scores are those of all distances, shifted by one from query to query (appendix B).
        causal: no scores are needed of keys after their query.
    """
    rows, heads, length, features = q.shape
    distances = jnp.arange(keys - 1, -1 if causal else -keys, -1)
    encoded = sinusoids(distances[None], weights.shape[0], "halves")[0].astype(q.dtype)
    if rows * length < features:  # decoding: fewer products than with all distances projected
        turned = jnp.einsum("bhtk,dhk->bhtd", q, weights)
        scores = jnp.einsum("bhtd,nd->bhtn", turned, encoded, preferred_element_type=jnp.float32)
    else:
        scores = jnp.einsum("bhtk,nhk->bhtn", q, product(encoded, weights), preferred_element_type=jnp.float32)
    if ages is not None:
        index = jnp.clip(keys - 1 - ages, 0, len(distances) - 1)[:, None]
        return jnp.take_along_axis(scores, jnp.broadcast_to(index, (rows, heads, *index.shape[2:])), axis=-1)
    scores = jnp.pad(scores, [(0, 0), (0, 0), (0, 0), (0, keys + length - len(distances))])
    return scores.reshape(rows, heads, -1)[..., length - 1 : -1].reshape(rows, heads, length, -1)[..., :keys]


def _ages(q: jax.Array, context: AttentionContext) -> jax.Array | None:
    cached, content = context.cached, context.content
    if context.branches is not None and context.positions is not None:
        return context.positions[:, :, None] - context.positions[:, None, :]
    if cached and cached.memory:
        new = jnp.atleast_1d(cached.slot)[:, None] + jnp.arange(q.shape[2])  # [1 or B, T]
        old = jnp.broadcast_to(jnp.arange(cached.slots), (len(new), cached.slots))
        return new[:, :, None] - jnp.concatenate([old, new], -1)[:, None, :]
    if content and content.places is not None:
        return content.places[:, :, None] - jnp.arange(content.states.shape[1])
    return None


def by_segments(
    layer: KeepingLayer,
    layers: tuple[Any, jax.Array | None],
    x: jax.Array,
    context: AttentionContext,
    config: cfg.Model,
) -> jax.Array:
    """Layers (stacked parameters and dropout keys) over rows [B, T, D], segment by segment, with memory (section 3.2).

    No gradient flows into what each layer keeps of the segments before. A row is whole, so a step keeps nothing for the
    next one.
    """
    (rows, length, width), size, most = x.shape, config.segment_length, config.memory_length
    segments = jnp.zeros((rows, length), jnp.int32) if context.segments is None else context.segments
    count = -(-length // size)

    def split(whole: jax.Array) -> jax.Array:
        whole = jnp.pad(whole, [(0, 0), (0, count * size - length), *[(0, 0)] * (whole.ndim - 2)])
        return whole.reshape(rows, count, size, *whole.shape[2:]).swapaxes(0, 1)

    def segment(memory: tuple[jax.Array, jax.Array], inputs: Any) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        x, segments, number = inputs
        seen = jnp.concatenate([memory[1], segments], 1)
        here = dataclasses.replace(context, segments=segments, positions=None)

        def one(x: jax.Array, inputs: Any) -> tuple[jax.Array, jax.Array]:
            (block, key), states = inputs
            key = None if key is None else jax.random.fold_in(key, number)
            return layer(block, x, dataclasses.replace(here, content=Content(states, seen)), key)

        x, kept = jax.lax.scan(one, x, (layers, memory[0]))
        states = jnp.concatenate([memory[0], kept], 2)[:, :, size:]
        return (jax.lax.stop_gradient(states), seen[:, size:]), x

    # No token is of segment -1.
    memory = jnp.zeros((config.num_layers, rows, most, width), x.dtype), jnp.full((rows, most), -1, jnp.int32)
    _, done = jax.lax.scan(segment, memory, (split(x), split(segments), jnp.arange(count)))
    return done.swapaxes(0, 1).reshape(rows, count * size, width)[:, :length]
