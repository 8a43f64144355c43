"""Masked language modelling: the cross-entropy of the hidden tokens (BERT, arXiv 1810.04805, section 3.1)."""

from typing import Any

import jax
import jax.numpy as jnp

from scaling.config import schema as cfg
from scaling.data.batch import Batch
from scaling.model.decoder import Decoder
from scaling.objectives.log_probs import Unembedding, weighted_loss
from scaling.objectives.objective import Objective, Sums, forward


def most_hidden(rate: float, length: int) -> int:
    """The most tokens of a row that noise hides (``data.noise.masked``)."""
    return max(1, round(rate * length))


def masked(config: cfg.Config) -> Objective:
    """The objective: the negative log-likelihood of the hidden tokens; "loss" is in nats a hidden token.

    Logits are made of hidden tokens alone. A row has at most ``config.noise.rate`` of its length of them, rounded, and
    at least one.
    """
    unembedding = Unembedding.of(config)
    most = most_hidden(config.noise.rate, config.train.sequence_length)

    def objective(model: Decoder, frozen: Any, batch: Batch, key: jax.Array | None) -> Sums:
        hidden, batch, _ = forward(model, batch, key, config.train.pipeline_microbatches)
        weights, places = jax.lax.top_k(batch.weights, most)
        hidden = jnp.take_along_axis(hidden, places[..., None], axis=1)
        targets = jnp.take_along_axis(batch.targets, places, axis=1)
        minimised, log_probs = weighted_loss(
            hidden, model.output(hidden.dtype), targets, weights, unembedding, config.train.z_loss
        )
        return Sums(minimised, weights.sum(), {"loss": -(weights * log_probs).sum()})

    return objective
