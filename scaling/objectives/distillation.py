"""Distillation: a student learns the predictions of a teacher (DistilBERT: arXiv 1910.01108, section 2).

Three losses: the divergence of the student's distribution from the teacher's, both softened by a temperature (arXiv
1503.02531, section 2); the loss of pre-training; and 1 - cosine of the final states of both.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scaling.config import schema as cfg
from scaling.data.batch import Batch
from scaling.model.decoder import Decoder, Output, merge
from scaling.model.parametrization import parametrization
from scaling.objectives.log_probs import Unembedding, in_chunks, weighted_loss
from scaling.objectives.masked import at, most_hidden
from scaling.objectives.objective import Objective, Sums, forward


class Predictions(NamedTuple):
    """What makes the logits of a model.

    Attributes:
        hidden: states [B, N, D] that the output table multiplies.
        output: of the model.
        multiplier: of the logits.
    """

    hidden: jax.Array
    output: Output
    multiplier: float


def divergence(
    teacher: Predictions, student: Predictions, weights: jax.Array, how: Unembedding, temperature: float
) -> jax.Array:
    """The sum of weights * temperature^2 * KL(teacher || student), a float32 scalar, differentiable in the student.

    Args:
        teacher: its logits are divided by the temperature, too.
        student: of the same tokens; its width may be another.
        weights: float32 [B, N].
        how: its vocabulary and chunk; whole logits exist for a chunk of each sequence at a time.
        temperature: see there.
    """
    count = weights.shape[1]
    chunk = how.chunk if 0 < how.chunk < count else count

    def logs(hidden: jax.Array, made: Predictions) -> jax.Array:
        logits = jnp.einsum("btd,vd->btv", hidden, made.output.table, preferred_element_type=jnp.float32)
        logits = logits * made.multiplier
        if made.output.bias is not None:
            logits = logits + made.output.bias
        real = jnp.arange(logits.shape[-1]) < how.vocab_size
        return jax.nn.log_softmax(jnp.where(real, logits / temperature, -1e30))

    @jax.checkpoint
    def part(total: jax.Array, inputs: Any) -> tuple[jax.Array, None]:
        theirs, ours, weights = inputs
        wanted, found = logs(theirs, teacher), logs(ours, student)
        each = (jnp.exp(wanted) * (wanted - found)).sum(-1)
        return total + (weights * each).sum(), None

    inputs = tuple(in_chunks(x, chunk) for x in (teacher.hidden, student.hidden, weights))
    return temperature**2 * jax.lax.scan(part, jnp.zeros(()), inputs)[0]


def distillation(config: cfg.Config, teacher: cfg.Model) -> Objective:
    """The objective of a student whose ``frozen`` is the teacher's parameters.

    Args:
        config: resolved, of the student. Of encoders the hidden tokens are compared, of decoders all that count.
        teacher: resolved, of the same vocabulary.

    Returns:
        "loss" is that of pre-training, in nats a predicted token; "kl" and "cosine_loss" are logged beside it, without
        their coefficients.
    """
    how, knobs = Unembedding.of(config)._replace(smoothing=config.train.label_smoothing), config.distill
    network = cfg.Network(teacher, config.compute)
    most = 0 if config.model.causal else most_hidden(config.noise.rate, config.train.sequence_length)

    def predictions(model: Decoder, hidden: jax.Array) -> Predictions:
        hidden = model.transformed(hidden)
        return Predictions(hidden, model.output(hidden.dtype), parametrization(model.config).logit_multiplier)

    def objective(model: Decoder, frozen: Any, batch: Batch, key: jax.Array | None) -> Sums:
        known = merge(network, frozen)
        theirs, _, _ = forward(known, batch, None)
        ours, batch, routers = forward(model, batch, key)
        weights, targets, states = batch.weights, batch.targets, (ours, theirs)
        if most:
            weights, places = jax.lax.top_k(weights, most)
            targets, states = jnp.take_along_axis(targets, places, axis=1), (at(ours, places), at(theirs, places))
        student, other = predictions(model, states[0]), predictions(known, states[1])
        minimised, log_probs = weighted_loss(student.hidden, student.output, targets, weights, how, config.train.z_loss)
        metrics = {"loss": -(weights * log_probs).sum()}
        metrics["kl"] = divergence(other, student, weights, how, knobs.temperature)
        total = knobs.lm * minimised + knobs.kl * metrics["kl"]
        if knobs.cosine:
            # A mean over the tokens of a row, times what counts in it: so parts of a batch add up.
            each, there = 1 - _cosine(ours, theirs), _there(config, batch)
            mean = (there * each).sum(1) / jnp.maximum(there.sum(1), 1)
            metrics["cosine_loss"] = (batch.weights.sum(1) * mean).sum()
            total = total + knobs.cosine * metrics["cosine_loss"]
        return Sums(total, weights.sum(), metrics).with_routers(config.model, routers)

    return objective


def _there(config: cfg.Config, batch: Batch) -> jax.Array:
    """1 where a row has a token, of a decoder one that counts, and 0 at its padding, float32 [B, T]."""
    if config.model.causal:
        return (batch.weights > 0).astype(jnp.float32)
    if config.data.objective == "tlm":  # only rows of pairs have padding, which is a segment of its own
        return jnp.where(batch.segments == 0, 1.0, 0.0)
    return jnp.ones(batch.tokens.shape, jnp.float32)


def _cosine(x: jax.Array, y: jax.Array) -> jax.Array:
    """Of vectors [..., D], float32 [...]."""
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    lengths = jnp.sqrt(jnp.square(x).sum(-1) * jnp.square(y).sum(-1))
    return (x * y).sum(-1) / jnp.maximum(lengths, 1e-12)
