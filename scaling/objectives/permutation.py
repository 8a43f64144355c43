"""Permutation language modelling: tokens from those before them in a random order (XLNet, arXiv 1906.08237)."""

from typing import Any

import jax
import jax.numpy as jnp

from scaling.config import schema as cfg
from scaling.data.batch import Batch
from scaling.model.context import AttentionContext
from scaling.model.decoder import Decoder
from scaling.model.two_streams import two_streams
from scaling.objectives.log_probs import Unembedding, weighted_loss
from scaling.objectives.masked import most_hidden
from scaling.objectives.objective import Objective, Sums
from scaling.parallel.sharding import constrain


def permutation(config: cfg.Config) -> Objective:
    """The objective: the negative log-likelihood of the last tokens of each row's order; "loss" is in nats a token.

    The query stream is computed of predicted tokens alone (section 2.3, "partial prediction").
    """
    unembedding = Unembedding.of(config)._replace(smoothing=config.train.label_smoothing)
    most = most_hidden(config.noise.rate, config.train.sequence_length)

    def objective(model: Decoder, frozen: Any, batch: Batch, key: jax.Array | None) -> Sums:
        batch = jax.tree.map(lambda x: constrain(x, "rows", None), batch)
        weights, places = jax.lax.top_k(batch.weights, most)
        targets = jnp.take_along_axis(batch.targets, places, axis=1)
        context = AttentionContext(batch.positions, batch.segments, batch.types, order=batch.order)
        hidden = model.transformed(two_streams(model, batch.tokens, places, context, key))
        minimised, log_probs = weighted_loss(
            hidden, model.output(hidden.dtype), targets, weights, unembedding, config.train.z_loss
        )
        return Sums(minimised, weights.sum(), {"loss": -(weights * log_probs).sum()})

    return objective
