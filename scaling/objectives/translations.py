"""Ranking of translations by a dual encoder, with an additive margin (LaBSE: arXiv 2007.01852, section 2.1).

One encoder reads each text of a pair by itself. The vector of a text is its first state, by the pooler if the model has
one, divided by its length.
"""

from typing import Any

import jax
import jax.numpy as jnp

from scaling.config import schema as cfg
from scaling.data.batch import Batch
from scaling.model.context import AttentionContext
from scaling.model.decoder import Decoder
from scaling.objectives.objective import Objective, Sums
from scaling.parallel.sharding import constrain

_ABSENT = -1e30  # added to the scores of a row of padding


def translations(config: cfg.Config) -> Objective:
    """The objective: each text is to find its translation among those of the batch, in both directions.

    "loss" is the mean over pairs of the two cross-entropies, in nats, added; "accuracy" is the share of texts, of both
    languages, whose translation has the largest cosine. The texts of a batch are those of all devices, but of one
    microbatch (``config.train.microbatch_sequences``).
    """
    margin, scale = config.train.margin, config.train.cosine_scale

    def objective(model: Decoder, frozen: Any, batch: Batch, key: jax.Array | None) -> Sums:
        keys = (None, None) if key is None else jax.random.split(key)
        texts = ((batch.source, batch.source_segments), (batch.tokens, batch.segments))
        one, other = (vectors(model, *text, key) for text, key in zip(texts, keys, strict=True))
        counts = batch.weights.sum(1)  # 1 for a pair, 0 for a row of padding
        cosines = jnp.einsum("id,jd->ij", one, other, precision=jax.lax.Precision.HIGHEST)
        absent, own = jnp.where(counts > 0, 0.0, _ABSENT), jnp.arange(len(counts))
        scores = scale * (cosines - margin * jnp.eye(len(counts)))
        loss, right = -2 * jnp.diagonal(scores), jnp.zeros(len(counts))
        for axis, others in enumerate((absent[:, None], absent[None])):
            loss = loss + jax.nn.logsumexp(scores + others, axis=axis)
            right = right + ((cosines + others).argmax(axis) == own) / 2
        total = (counts * loss).sum()
        return Sums(total, counts.sum(), {"loss": total, "accuracy": (counts * right).sum()})

    return objective


def vectors(model: Decoder, tokens: Any, segments: Any, key: jax.Array | None) -> jax.Array:
    """The vectors [B, D] of texts, float32: tokens and segments int32 [B, T]; ``key`` is that of dropout."""
    tokens, segments = (constrain(x, "rows", None) for x in (tokens, segments))
    first = model(tokens, AttentionContext(segments=segments), key=key)[:, 0].astype(jnp.float32)
    first = model.pooled(first) if model.config.pooler else first
    return first / jnp.maximum(jnp.linalg.norm(first, axis=-1, keepdims=True), 1e-6)
