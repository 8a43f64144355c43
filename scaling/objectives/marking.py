"""A number for each word of a text: the span that answers a question, or a tag (BERT: arXiv 1810.04805, section 4)."""

from typing import Any

import jax
import jax.numpy as jnp

from scaling.config import schema as cfg
from scaling.data.batch import Scored
from scaling.model.decoder import Decoder
from scaling.model.layers import dropout, use
from scaling.objectives.objective import Objective, Sums, forward

SPAN = 2  # outputs of the model: where a span begins, and where it ends
_NOT_THERE = -1e30  # logit of a place where no span begins or ends
_DROPOUT = 1  # what the head's dropout key is folded with


def scores(model: Decoder, hidden: jax.Array, rate: float, key: Any) -> jax.Array:
    """The head at every token, float32 [B, T, outputs]. A pooler, which is for the state of a text, is passed by.

    Args:
        model: with ``config.outputs``.
        hidden: final hidden states [B, T, D].
        rate: of the dropout before the head.
        key: dropout key; None = no dropout.
    """
    read = dropout(hidden.astype(jnp.float32), rate, None if key is None else jax.random.fold_in(key, _DROPOUT))
    head, bias = (use(each, jnp.dtype(jnp.float32)) for each in (model.head, model.head_bias))
    return jnp.einsum("btd,do->bto", read, head, precision=jax.lax.Precision.HIGHEST) + bias


def marking(config: cfg.Config, tags: int) -> Objective:
    """The objective. The loss is a cross-entropy in nats, and sums are over what ``batch.reads`` counts.

    With tags, ``batch.reads`` is 1 at the place of each word, and ``batch.labels`` is there the number of its tag.

    Of a span, ``batch.weights`` is 1 at the places where it may begin or end, among them one that stands for "not in
    this row"; ``batch.reads`` is 1 at that one, so rows are counted; ``batch.labels`` is 1 where the span begins, 2
    where it ends, 3 at both, else 0. The loss of a row is the mean of those of the two places.

    Args:
        config: resolved.
        tags: number of tags; 0 = a span.
    """

    def objective(model: Decoder, frozen: Any, batch: Scored, key: jax.Array | None) -> Sums:
        hidden, batch, routers = forward(model, batch, key, config.train.pipeline_microbatches)
        if config.optimizer.trained == "head":
            hidden = jax.lax.stop_gradient(hidden)
        found = scores(model, hidden, config.align.dropout, key)
        metrics = _of_tags(found, batch) if tags else _of_spans(found, batch)
        return Sums(metrics["loss"], batch.reads.sum(), metrics).with_routers(config.model, routers)

    return objective


def _of_tags(found: jax.Array, batch: Scored) -> dict[str, jax.Array]:
    """Sums over words: cross-entropy, and right tags."""
    labels, there = batch.labels.astype(jnp.int32), batch.reads > 0
    likely = jnp.take_along_axis(jax.nn.log_softmax(found), labels[..., None], 2)[..., 0]
    right = there & (found.argmax(-1) == labels)
    return {"loss": -jnp.where(there, likely, 0.0).sum(), "accuracy": right.sum().astype(jnp.float32)}


def _of_spans(found: jax.Array, batch: Scored) -> dict[str, jax.Array]:
    """Sums over rows: cross-entropy, and rows of which both places are right."""
    found = jnp.where(batch.weights[..., None] > 0, found, _NOT_THERE)
    labels = batch.labels.astype(jnp.int32)[..., None]
    wanted = (labels & jnp.array([1, 2])) > 0  # [B, T, 2]
    likely = jnp.where(wanted, jax.nn.log_softmax(found, axis=1), 0.0)
    right = jnp.take_along_axis(wanted, found.argmax(1)[:, None], 1).all((1, 2))
    return {"loss": -likely.sum() / SPAN, "accuracy": right.sum().astype(jnp.float32)}
