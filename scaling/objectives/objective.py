"""What an objective is, and what all of them begin with."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from scaling.data.batch import Batch
from scaling.model.context import AttentionContext
from scaling.model.decoder import Decoder
from scaling.model.ring import zigzag
from scaling.parallel.sharding import constrain, context_devices


class Sums(NamedTuple):
    """Sums over what a batch holds, float32 scalars, so that parts of a batch add up and a step divides once.

    Attributes:
        objective: what is minimised.
        weight: what the sums are divided by, such as the number of targets.
        metrics: name -> sum; "loss" is what is logged and watched.
    """

    objective: jax.Array
    weight: jax.Array
    metrics: dict[str, jax.Array]


# (model, frozen parameters of other models or None, batch of arrays [B, T], dropout key or None) to sums
Objective = Callable[[Decoder, Any, Batch, jax.Array | None], Sums]


def forward(
    model: Decoder, batch: Batch, key: jax.Array | None, pipeline_microbatches: int = 0
) -> tuple[jax.Array, Batch]:
    """Final hidden states [B, T, D] of a batch, and the batch with its tokens in the same order.

    On a mesh with a ``context`` axis that is the order of ``ring.zigzag``, here and once: sums over tokens do not need
    the text's order.
    """
    batch = jax.tree.map(lambda x: constrain(x, "rows", None), batch)
    context = AttentionContext(batch.positions, batch.segments)
    if context_devices() > 1:
        if batch.positions is None:
            index = jax.lax.broadcasted_iota("int32", (1, batch.tokens.shape[1]), 1)
            context = dataclasses.replace(context, positions=index)
        batch, context = jax.tree.map(zigzag, (batch, context))
        context = dataclasses.replace(context, zigzag=True)
    return model(batch.tokens, context, key=key, pipeline_microbatches=pipeline_microbatches), batch
