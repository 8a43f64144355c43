"""Replaced tokens: a generator fills hidden ones, and a discriminator finds them (ELECTRA: arXiv 2003.10555)."""

from typing import Any

import jax
import jax.numpy as jnp

from scaling.config import schema as cfg
from scaling.data.batch import Batch
from scaling.model.decoder import Decoder, Output, generator_of
from scaling.objectives.log_probs import Unembedding, in_chunks, weighted_loss
from scaling.objectives.masked import at, most_hidden
from scaling.objectives.objective import Objective, Sums, forward


def drawn(hidden: jax.Array, output: Output, draws: jax.Array, how: Unembedding) -> jax.Array:
    """A token of each distribution: the first one up to which the probabilities add up to more than the draw.

    Args:
        hidden: states [B, N, D] that the output table multiplies.
        output: see there; no gradient flows to it, and none to the states.
        draws: numbers in [0, 1), float32 [B, N].
        how: its vocabulary and chunk; whole logits exist for a chunk of each sequence at a time.

    Returns:
        int32 [B, N].
    """
    hidden, output = jax.lax.stop_gradient((hidden, output))
    count = draws.shape[1]

    def of_chunk(inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
        states, draws = inputs
        logits = jnp.einsum("bnd,vd->bnv", states, output.table, preferred_element_type=jnp.float32)
        logits = logits * how.logit_multiplier + (0 if output.bias is None else output.bias)
        logits = logits[..., : how.vocab_size]
        sums = jnp.cumsum(jnp.exp(logits - logits.max(-1, keepdims=True)), axis=-1)
        before = (sums <= (draws * sums[..., -1])[..., None]).sum(-1)
        return jnp.minimum(before, how.vocab_size - 1).astype(jnp.int32)

    if not 0 < how.chunk < count:
        return of_chunk((hidden, draws))
    found = jax.lax.map(of_chunk, (in_chunks(hidden, how.chunk), in_chunks(draws, how.chunk)))
    return found.swapaxes(0, 1).reshape(draws.shape[0], -1)[:, :count]


def replaced(config: cfg.Config) -> Objective:
    """The objective: the generator's loss, and ``config.train.discriminator_weight`` times the discriminator's.

    The generator's is in nats a hidden token; the discriminator's is the binary cross-entropy of all tokens, in nats a
    token, and a token that the generator has drawn right counts as the text's own (section 3.1). "loss" is both, with
    the coefficient. No gradient flows from the discriminator to the generator but through the embeddings, which are one
    parameter of both.

    The step divides all sums by one number, the hidden tokens. Rows have as many of these as each other; so the mean
    over the tokens of a row is multiplied by its hidden tokens, and parts of a batch still add up.
    """
    how = Unembedding.of(config)
    smoothed = how._replace(smoothing=config.train.label_smoothing)
    most = most_hidden(config.noise.rate, config.train.sequence_length)

    def objective(model: Decoder, frozen: Any, batch: Batch, key: jax.Array | None) -> Sums:
        writer_key, key = (None, None) if key is None else jax.random.split(key)
        writer = generator_of(model)
        states, batch, _ = forward(writer, batch, writer_key)
        assert batch.draws is not None
        weights, places = jax.lax.top_k(batch.weights, most)
        targets, draws = (jnp.take_along_axis(x, places, axis=1) for x in (batch.targets, batch.draws))
        hidden, output = writer.transformed(at(states, places)), writer.output(states.dtype)
        written, log_probs = weighted_loss(hidden, output, targets, weights, smoothed, config.train.z_loss)
        tokens = jnp.where(weights > 0, drawn(hidden, output, draws, how), targets)
        tokens = jax.vmap(lambda row, at, new: row.at[at].set(new))(batch.targets, places, tokens)

        states, batch, _ = forward(model, batch._replace(tokens=tokens), key)
        logits, other = model.replaced_logits(states), tokens != batch.targets
        each = jax.nn.softplus(jnp.where(other, -logits, logits))
        counts = batch.weights.sum(1)  # 0 in rows that fill up a batch of validation
        found = (counts * each.mean(1)).sum()
        loss = -(weights * log_probs).sum()
        coefficient = config.train.discriminator_weight
        metrics = {"loss": loss + coefficient * found, "generator_loss": loss, "discriminator_loss": found}
        real = jnp.broadcast_to(counts[:, None] > 0, other.shape)
        ratios = {
            "replaced": _among(other, real),
            "accuracy_replaced": _among(logits > 0, real & other),
            "accuracy_original": _among(logits <= 0, real & ~other),
        }
        return Sums(written + coefficient * found, weights.sum(), metrics, ratios)

    return objective


def _among(which: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """How many of these tokens are those, and how many they are, float32."""
    return (which & tokens).sum(dtype=jnp.float32), tokens.sum(dtype=jnp.float32)
