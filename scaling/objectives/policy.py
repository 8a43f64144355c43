"""The clipped policy gradient of PPO and GRPO, and the loss of a value function, on answers that a model has given."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scaling.config import schema as cfg
from scaling.data.batch import Batch
from scaling.model.decoder import Decoder
from scaling.objectives.kl import ESTIMATORS
from scaling.objectives.log_probs import Unembedding, log_probs, weighted_loss
from scaling.objectives.objective import Objective, Sums, forward


class Answers(NamedTuple):
    """Prompts with their answers, left-aligned; arrays [B, T], in a step [microbatches, B, T].

    What stands at position t belongs to the state before token t + 1, which is the target there.

    Attributes:
        tokens: ids, int32; anything after the end.
        targets: the next ids, int32.
        mask: 1 where the target is a token of the answer, else 0, float32.
        counts: mask over its sum, for metrics.
        weights: of the losses, as of ``means``.
        log_probs: of the targets by the policy that gave the answers.
        reference: of the targets by the reference.
        advantages: float32.
        returns: what the value function should say; None without one.
        values: what it said when the answers were given; None without one.
    """

    tokens: jax.Array
    targets: jax.Array
    mask: jax.Array
    counts: jax.Array
    weights: jax.Array
    log_probs: jax.Array
    reference: jax.Array
    advantages: jax.Array
    returns: jax.Array | None = None
    values: jax.Array | None = None


class Minibatch(NamedTuple):
    """What one update is computed from.

    Attributes:
        answers: see there.
        kl: coefficient of the divergence in the loss, float32 [] (in a step [microbatches]); 0 = it is in the reward.
        pretraining: rows of pre-training text whose weights sum to 1 over the minibatch; None = none.
    """

    answers: Answers
    kl: jax.Array
    pretraining: Batch | None = None


def unembedding(config: cfg.Config, vocab_size: int, entropy: bool = False) -> Unembedding:
    """How log-probabilities are computed as answers are drawn: at their temperature, of the tokenizer's ids alone."""
    whole = Unembedding.of(config)
    multiplier = whole.logit_multiplier / config.rl.temperature
    return whole._replace(vocab_size=vocab_size, logit_multiplier=multiplier, entropy=entropy)


def clipped(ratio: jax.Array, advantages: jax.Array, clip: float) -> jax.Array:
    """The loss of each token (PPO, arXiv 1707.06347, equation 7, negated)."""
    return jnp.maximum(-advantages * ratio, -advantages * jnp.clip(ratio, 1 - clip, 1 + clip))


def policy(config: cfg.Config, vocab_size: int) -> Objective:
    """The objective of a policy on a ``Minibatch``, whose answers were drawn from the first ``vocab_size`` ids.

    It is the clipped loss, ``kl`` times the estimator ``config.rl.kl_estimator`` of the divergence from the reference,
    both by the weights of the answers; and ``config.rl.pretraining_weight`` times the mean negative log-likelihood of a
    token of pre-training text (PPO-ptx, arXiv 2203.02155, equation 2). The batch's sums have weight 1.
    """
    rl, how = config.rl, unembedding(config, vocab_size, entropy=True)
    of_text = Unembedding.of(config)
    rows = config.train.batch_tokens // config.train.sequence_length  # of a minibatch

    def objective(model: Decoder, frozen: Any, batch: Minibatch, key: jax.Array | None) -> Sums:
        answers, there = batch.answers, batch.answers.mask > 0
        hidden, _, routers = forward(
            model, Batch(answers.tokens, answers.targets, answers.counts), key, config.train.pipeline_microbatches
        )
        found, _, entropy = log_probs(hidden, model.output(hidden.dtype), answers.targets, how)
        # What is no token of an answer may hold anything, also what is not finite: it is taken out before it is used.
        log_ratio = jnp.where(there, found - answers.log_probs, 0.0)
        advantages = jnp.where(there, answers.advantages, 0.0)
        ratio = jnp.exp(log_ratio)
        loss = clipped(ratio, advantages, rl.clip)
        divergence = ESTIMATORS[rl.kl_estimator](jnp.where(there, found - answers.reference, 0.0))

        def total(each: jax.Array) -> jax.Array:
            return (answers.weights * each).sum()

        def mean(each: jax.Array) -> jax.Array:
            return (answers.counts * each).sum()

        minimised = total(loss) + batch.kl * total(divergence)
        metrics = {
            "loss/policy_avg": total(loss),
            "policy/approxkl_avg": mean(0.5 * jnp.square(log_ratio)),
            "policy/clipfrac_avg": mean(jnp.abs(ratio - 1) > rl.clip),
            "policy/entropy_avg": mean(jnp.where(there, entropy, 0.0)),
            "val/ratio": mean(ratio),
            "val/ratio_squared": mean(jnp.square(ratio)),
        }
        if batch.pretraining is not None:
            text = batch.pretraining
            hidden, _, _ = forward(model, text, key, config.train.pipeline_microbatches)
            weights = rl.pretraining_weight * text.weights
            added, likely = weighted_loss(hidden, model.output(hidden.dtype), text.targets, weights, of_text)
            minimised += added
            metrics["loss/pretraining_avg"] = -(text.weights * likely).sum()
        share = jnp.float32(answers.tokens.shape[0] / rows)
        return Sums(minimised, share, {"loss": minimised} | metrics).with_routers(config.model, routers)

    return objective


def value(config: cfg.Config) -> Objective:
    """The objective of a value function on a ``Minibatch``: half the squared error of its returns.

    It is clipped around the value that it said when the answers were given, as the policy is; a mean over all tokens of
    the answers. ``config.model`` is that of the value function, with one output.
    """
    clip, rows = config.rl.value_clip, config.train.batch_tokens // config.train.sequence_length

    def objective(model: Decoder, frozen: Any, batch: Minibatch, key: jax.Array | None) -> Sums:
        answers, there = batch.answers, batch.answers.mask > 0
        assert answers.returns is not None and answers.values is not None
        hidden, _, routers = forward(
            model, Batch(answers.tokens, answers.targets, answers.counts), key, config.train.pipeline_microbatches
        )
        old, returns = (jnp.where(there, x, 0.0) for x in (answers.values, answers.returns))
        said = jnp.where(there, model.outputs(hidden)[..., 0], 0.0)
        near = jnp.clip(said, old - clip, old + clip)
        far = jnp.square(said - returns) < jnp.square(near - returns)
        error = 0.5 * jnp.maximum(jnp.square(said - returns), jnp.square(near - returns))
        loss = (answers.counts * error).sum()
        metrics = {"loss": loss, "val/clipfrac_avg": (answers.counts * far).sum()}
        share = jnp.float32(answers.tokens.shape[0] / rows)
        return Sums(loss, share, metrics).with_routers(config.model, routers)

    return objective
