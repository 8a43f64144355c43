"""Four ways to take a mean over the tokens of a batch of answers, as weights of tokens that are functions of a mask.

A loss is the sum of weight times loss of a token, over the whole batch. The weights are made before the batch is cut
into microbatches, so accumulation and devices change nothing.

Masks are [B, T], 1 at a token of an answer and else 0; the weights are float32 [B, T], 0 where the mask is.
"""

import jax
import jax.numpy as jnp


def token(mask: jax.Array) -> jax.Array:
    """Every token of the batch weighs alike, so long answers count more (DAPO, arXiv 2503.14476, section 3.3)."""
    return mask / jnp.maximum(mask.sum(), 1)


def sequence(mask: jax.Array) -> jax.Array:
    """Every answer weighs alike, so a token of a long one counts less (GRPO, arXiv 2402.03300, equation 3)."""
    lengths = mask.sum(1, keepdims=True)
    answers = jnp.maximum((lengths > 0).sum(), 1)
    return mask / jnp.maximum(lengths, 1) / answers


def constant(mask: jax.Array, length: int) -> jax.Array:
    """Every token weighs 1 / (answers * length), whatever the lengths are (Dr. GRPO, arXiv 2503.20783, section 3.2).

    The weights sum to less than 1 where answers are shorter than ``length``.
    """
    answers = jnp.maximum((mask.sum(1) > 0).sum(), 1)
    return mask / (answers * length)


def prompt(mask: jax.Array, group: int) -> jax.Array:
    """Every prompt weighs alike, and the tokens of all its answers do; ``group`` rows after one another are a prompt's.

    Where a group is one answer, this is ``sequence``.
    """
    grouped = mask.reshape(-1, group * mask.shape[1])
    return sequence(grouped).reshape(mask.shape)
