"""Next-token prediction: the cross-entropy of every token that counts (GPT-1 to GPT-3)."""

from typing import Any

import jax

from scaling.config import schema as cfg
from scaling.data.batch import Batch
from scaling.model.decoder import Decoder
from scaling.objectives.log_probs import Unembedding, weighted_loss
from scaling.objectives.objective import Objective, Sums, forward


def next_token(config: cfg.Config) -> Objective:
    """The objective of pre-training.

    What is minimised is the negative log-likelihood of the targets and z_loss * logsumexp(logits)^2 (PaLM, arXiv
    2204.02311, section 5), each times its target's weight, and the routers' losses of a model with experts; "loss" is
    the first alone, in nats a token. With ``config.train.label_smoothing`` what is minimised is smoothed
    (``weighted_loss``), and the loss is not.
    """
    unembedding = Unembedding.of(config)._replace(smoothing=config.train.label_smoothing)

    def objective(model: Decoder, frozen: Any, batch: Batch, key: jax.Array | None) -> Sums:
        hidden, batch, routers = forward(model, batch, key, config.train.pipeline_microbatches)
        output = model.output(hidden.dtype)
        minimised, log_probs = weighted_loss(
            hidden, output, batch.targets, batch.weights, unembedding, config.train.z_loss
        )
        sums = Sums(minimised, batch.weights.sum(), {"loss": -(batch.weights * log_probs).sum()})
        return sums.with_routers(config.model, routers)

    return objective
