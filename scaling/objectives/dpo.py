"""Direct preference optimisation: a policy learns from pairs of answers, without a reward model.

The implicit reward of an answer is beta * log(policy / reference) of its probability given the prompt. The losses are
those of DPO (arXiv 2305.18290, equation 7) and IPO (arXiv 2310.12036, equation 17).
"""

from typing import Any

import jax
import jax.numpy as jnp

from scaling.config import schema as cfg
from scaling.data.batch import Batch
from scaling.model.decoder import Decoder, merge
from scaling.model.experts import RouterSums
from scaling.objectives.log_probs import Unembedding, log_probs
from scaling.objectives.objective import Objective, Sums, forward


def answered(found: jax.Array, weights: jax.Array) -> jax.Array:
    """Log-probability of each row's answer, the sum over its tokens, float32 [B].

    Args:
        found: log-probability of each target, [B, T]; where the weight is 0 it may be anything, also NaN.
        weights: more than 0 at the answer's tokens, [B, T].
    """
    return jnp.where(weights > 0, found, 0.0).sum(-1)


def compare(policy: jax.Array, reference: jax.Array, there: jax.Array, dpo: cfg.Dpo) -> dict[str, jax.Array]:
    """Loss and metrics of each pair, float32 [P] each; 0 where there is no pair, whatever stands there.

    The loss of a pair is a function of margin = reward(chosen) - reward(rejected): -log sigmoid(margin), or for IPO
    (margin / beta - 1 / (2 beta))^2. Label smoothing is the probability that a label is wrong: the loss of the
    exchanged pair has this weight, and the given one the rest.

    Log-probabilities are sums over an answer's tokens, also for IPO, whose paper has probabilities of whole answers.
    (The library trl divides by the length for IPO, so that beta does not depend on it; its beta means another thing.)

    Args:
        policy: log-probabilities of whole answers, the chosen and the rejected one of each pair, [P, 2].
        reference: those of the reference, [P, 2].
        there: which pairs exist, bool [P].
        dpo: the knobs.

    Returns:
        "loss", and by their names in trl "rewards/chosen", "rewards/rejected", "rewards/margins",
        "rewards/accuracies" (1 if the chosen one has the higher reward; a tie counts half), "logps/chosen" and
        "logps/rejected" (of the policy).
    """
    # What is no pair may hold anything, also what is not finite: it is taken out before it is used.
    policy, reference = (jnp.where(there[:, None], x, 0.0) for x in (policy, reference))
    rewards = dpo.beta * (policy - reference)
    margin = rewards[:, 0] - rewards[:, 1]

    def cost(margin: jax.Array) -> jax.Array:
        if dpo.loss == "ipo":
            return jnp.square((margin - 0.5) / dpo.beta)
        return jax.nn.softplus(-margin)

    each = {
        "loss": (1 - dpo.label_smoothing) * cost(margin) + dpo.label_smoothing * cost(-margin),
        "rewards/chosen": rewards[:, 0],
        "rewards/rejected": rewards[:, 1],
        "rewards/margins": margin,
        "rewards/accuracies": (margin > 0) + 0.5 * (margin == 0),
        "logps/chosen": policy[:, 0],
        "logps/rejected": policy[:, 1],
    }
    return {name: jnp.where(there, value, 0.0) for name, value in each.items()}


def dpo(config: cfg.Config) -> Objective:
    """The objective: rows 2i and 2i + 1 of a batch are the chosen and the rejected answer to one prompt.

    The answers' tokens have the weight 1, all others 0; a pair of which a row weighs nothing is padding. ``frozen`` is
    the reference's parameters. The sums are over pairs, so a batch's loss is the mean over its pairs on any number of
    devices and microbatches. What is minimised is the loss of ``compare`` and ``config.dpo.nll`` times "nll_loss", the
    negative log-likelihood of the chosen answer divided by its tokens (arXiv 2404.19733, equation 1); "loss" is the
    first alone.
    """
    how = Unembedding.of(config)

    def answers(model: Decoder, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, RouterSums | None]:
        hidden, batch, routers = forward(model, batch, key, config.train.pipeline_microbatches)
        found, _ = log_probs(hidden, model.output(hidden.dtype), batch.targets, how)
        return answered(found, batch.weights).reshape(-1, 2), routers

    def objective(model: Decoder, frozen: Any, batch: Batch, key: jax.Array | None) -> Sums:
        lengths = (batch.weights > 0).sum(1).reshape(-1, 2)
        there = (lengths > 0).all(1)
        # A row counts half of a pair in the routers' losses, however long its answer is.
        shares = jnp.where(there[:, None], 0.5 / jnp.maximum(lengths, 1), 0.0).reshape(-1, 1)
        batch = batch._replace(weights=batch.weights * shares)
        reference, _ = answers(merge(config.network, frozen), batch, None)
        policy, routers = answers(model, batch, key)
        each = compare(policy, jax.lax.stop_gradient(reference), there, config.dpo)
        each["nll_loss"] = -each["logps/chosen"] / jnp.maximum(lengths[:, 0], 1)
        totals = {name: value.sum() for name, value in each.items()}
        minimised = totals["loss"]
        if config.dpo.nll:
            minimised = minimised + config.dpo.nll * totals["nll_loss"]
        return Sums(minimised, there.sum().astype(jnp.float32), totals).with_routers(config.model, routers)

    return objective
