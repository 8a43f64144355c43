"""Masked language modelling, alone or with a question about two texts (BERT: arXiv 1810.04805, section 3.1)."""

from typing import Any

import jax
import jax.numpy as jnp

from scaling.config import schema as cfg
from scaling.data.batch import Batch, Scored
from scaling.model.decoder import Decoder
from scaling.objectives.log_probs import Unembedding, weighted_loss
from scaling.objectives.objective import Objective, Sums, forward, states


def most_hidden(rate: float, length: int) -> int:
    """The most tokens of a row that noise hides (``data.noise.masked``)."""
    return max(1, round(rate * length))


def masked(config: cfg.Config) -> Objective:
    """The objective: the negative log-likelihood of the hidden tokens; "loss" is in nats a hidden token.

    Logits are made of hidden tokens alone. A row has at most ``config.noise.rate`` of its length of them, rounded, and
    at least one.
    """
    unembedding = Unembedding.of(config)._replace(smoothing=config.train.label_smoothing)
    most = most_hidden(config.noise.rate, config.train.sequence_length)

    def objective(model: Decoder, frozen: Any, batch: Batch | Scored, key: jax.Array | None) -> Sums:
        states_of_all, batch, _ = forward(model, batch, key, config.train.pipeline_microbatches)
        weights, places = jax.lax.top_k(batch.weights, most)
        targets = jnp.take_along_axis(batch.targets, places, axis=1)
        hidden = model.transformed(at(states_of_all, places))
        minimised, log_probs = weighted_loss(
            hidden, model.output(hidden.dtype), targets, weights, unembedding, config.train.z_loss
        )
        sums = Sums(minimised, weights.sum(), {"loss": -(weights * log_probs).sum()})
        return with_pairs(sums, model, states_of_all, batch) if isinstance(batch, Scored) else sums

    return objective


def at(states_of_all: jax.Array, places: jax.Array) -> jax.Array:
    """The states [B, N, D] of all [B, T, D] at some places, int32 [B, N]."""
    return jnp.take_along_axis(states_of_all, places[..., None], axis=1)


def with_pairs(sums: Sums, model: Decoder, hidden: jax.Array, batch: Scored) -> Sums:
    """Adds the cross-entropy of the question about the two texts, a mean over rows as the first is over hidden tokens.

    The step divides all sums by one number, the hidden tokens. Rows have as many of these as each other, but for a few;
    so the loss of a row is multiplied by its hidden tokens, and parts of a batch still add up.

    Args:
        sums: of the hidden tokens.
        model: with a pair head.
        hidden: final states [B, T, D].
        batch: with the answer, 0 or 1, as the label of each row.
    """
    logits = model.pair_logits(states(hidden, batch))
    labels = (batch.reads * batch.labels).sum(1).astype(jnp.int32)
    weights = batch.weights.sum(1)
    loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]
    right = (logits.argmax(1) == labels).astype(jnp.float32)
    metrics = {"pair_loss": (weights * loss).sum(), "pair_accuracy": (weights * right).sum()}
    return sums._replace(objective=sums.objective + metrics["pair_loss"], metrics=sums.metrics | metrics)
