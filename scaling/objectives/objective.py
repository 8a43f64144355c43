"""What an objective is, and what all of them begin with."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from scaling.config import schema as cfg
from scaling.data.batch import Batch, Scored
from scaling.model.context import AttentionContext
from scaling.model.decoder import Decoder
from scaling.model.experts import Counted, RouterSums
from scaling.model.ring import zigzag
from scaling.parallel.sharding import constrain, context_devices


class Sums(NamedTuple):
    """Sums over what a batch holds, float32, so that parts of a batch add up and a step divides once.

    Attributes:
        objective: what is minimised, a scalar.
        weight: what the sums are divided by, such as the number of targets; a scalar.
        metrics: name -> sum, a scalar or a vector; "loss" is what is logged and watched.
        ratios: name -> sum, and what this is divided by in the place of ``weight``, of metrics alone; 0 where both are.
    """

    objective: jax.Array
    weight: jax.Array
    metrics: dict[str, jax.Array]
    ratios: dict[str, tuple[jax.Array, jax.Array]] = {}  # noqa: RUF012 (nobody changes it)

    def with_routers(self, model: cfg.Model, routers: RouterSums | None) -> "Sums":
        """Adds the routers' losses, summed over layers, to the objective; the metrics get their means over layers.

        Args:
            model: resolved.
            routers: from ``forward``. Each is multiplied by the weights of its rows already, so it is divided by the
                same number as the loss. None = no experts.
        """
        if routers is None:
            return self
        experts, layers = model.experts, model.expert_layers
        penalty = experts.balance_loss * routers.balance + experts.z_loss * routers.z
        names = dict(zip(RouterSums._fields, ("balance_loss", "router_z_loss", "dropped", "expert_load"), strict=True))
        means = {names[field]: total / layers for field, total in routers._asdict().items()}
        return self._replace(objective=self.objective + penalty, metrics=self.metrics | means)


# (model, frozen parameters of other models or None, batch of arrays [B, T], dropout key or None) to sums
Objective = Callable[[Decoder, Any, Any, jax.Array | None], Sums]
AnyBatch = TypeVar("AnyBatch", bound=Batch | Scored)


def states(hidden: jax.Array, batch: Scored) -> jax.Array:
    """The final state of each row at the place that is read, float32 [B, D]; zeros of rows of padding."""
    return jnp.einsum("btd,bt->bd", hidden.astype(jnp.float32), batch.reads)


def read(model: Decoder, hidden: jax.Array, batch: Scored) -> jax.Array:
    """The model's numbers at the place of each row that is read, float32 [B, outputs].

    Args:
        model: with ``config.outputs``.
        hidden: [B, T, D], in the order of the batch's tokens.
        batch: of ``forward``.
    """
    return model.outputs(states(hidden, batch))


def forward(
    model: Decoder, batch: AnyBatch, key: jax.Array | None, pipeline_microbatches: int = 0
) -> tuple[jax.Array, AnyBatch, RouterSums | None]:
    """Final hidden states [B, T, D] of a batch, the batch with its tokens in the same order, and the routers' sums.

    Experts have the capacity of training. The sums are None without experts; pass them to ``Sums.with_routers``.

    On a mesh with a ``context`` axis, ``ring.zigzag`` reorders tokens here and nowhere else: sums over tokens do
    not need the text's order.
    """
    batch = jax.tree.map(lambda x: constrain(x, "rows", None), batch)
    order = batch.order if isinstance(batch, Batch) else None
    context, counted = AttentionContext(batch.positions, batch.segments, batch.types, order=order), None
    if model.config.encoder_layers:
        assert isinstance(batch, Batch) and batch.source is not None
        key, encoder_key = (None, None) if key is None else jax.random.split(key)
        source = model.encode(batch.source, batch.source_segments, encoder_key, batch.source_positions)
        context = dataclasses.replace(context, source=source)
    if model.config.experts.count:
        # What comes after the last token that counts is padding: nothing that counts sees it.
        counts = batch.reads if isinstance(batch, Scored) else batch.weights
        real = jax.lax.cummax((counts > 0).astype(jnp.int32), axis=1, reverse=True) > 0
        counted = Counted(real, counts.sum(axis=1))
    if context_devices() > 1:
        if batch.positions is None:
            index = jax.lax.broadcasted_iota("int32", (1, batch.tokens.shape[1]), 1)
            context = dataclasses.replace(context, positions=index)
        batch, context = jax.tree.map(zigzag, (batch, context))
        context = dataclasses.replace(context, zigzag=True)
        if counted is not None:
            counted = Counted(zigzag(counted.real), counted.weight, zigzag=True)
    parts = pipeline_microbatches
    hidden, routers = model.hidden_and_sums(batch.tokens, context, counted, key=key, pipeline_microbatches=parts)
    return hidden, batch, routers
