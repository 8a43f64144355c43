"""XLNet's two streams (arXiv 1906.08237, sections 2.3 and 2.4): one sees where a token stands, and not which it is."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from scaling.model.context import AttentionContext, Content
from scaling.model.decoder import Decoder
from scaling.model.layers import dropout, use
from scaling.model.stack import STACK
from scaling.parallel.sharding import constrain


def two_streams(
    model: Decoder, tokens: jax.Array, places: jax.Array, context: AttentionContext, key: jax.Array | None = None
) -> jax.Array:
    """Final states of the query stream, which knows where a token stands and those before it in the order.

    Args:
        model: with ``positions="xlnet"``.
        tokens: ids, int32 [B, T].
        places: of the tokens that are predicted, int32 [B, N].
        context: with an ``order``. In the content stream a token sees itself, those before it and its equals there.
        key: dropout key; None = no dropout.

    Returns:
        [B, N, D] in the compute dtype.
    """
    context = model.informed(context)
    assert context.order is not None
    segments, types, order = (
        None if x is None else jnp.take_along_axis(x, places, 1)
        for x in (context.segments, context.types, context.order - 1)
    )
    query = dataclasses.replace(context, segments=segments, types=types, order=order)
    h = model.embed(tokens)
    g = jnp.broadcast_to(use(model.query_embedding, h.dtype), (*places.shape, h.shape[2]))
    keys, layer, rate = None, model.keeping(), model.config.dropout_embedding
    if key is not None:
        *ends, of_h, of_g = jax.random.split(key, 4)
        h, g = dropout(h, rate, ends[0]), dropout(g, rate, ends[1])
        keys = tuple(jax.random.split(each, model.config.num_layers) for each in (of_h, of_g))

    def both(streams: tuple[jax.Array, jax.Array], inputs: Any) -> tuple[tuple[jax.Array, jax.Array], None]:
        (h, g), (block, keys) = streams, inputs
        of_h, of_g = keys or (None, None)
        after, states = layer(block, h, context, of_h)
        content = Content(states, context.segments, context.types, context.order, places)
        return (after, layer(block, g, dataclasses.replace(query, content=content), of_g)[0]), None

    h, g = (constrain(x, "rows", "sequence", None) for x in (h, g))
    return model.finish(jax.lax.scan(both, (h, g), (getattr(model, STACK), keys))[0][1])
