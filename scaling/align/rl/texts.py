"""Prompts with their answers as rows of tokens that begin at position 0, as training reads them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Texts(NamedTuple):
    """Rows of prompts with answers; what stands at position t belongs to the state before token t + 1.

    Attributes:
        tokens: ids, int32 [B, T]; 0 after the end.
        targets: the next ids, int32 [B, T].
        mask: 1 where the target is a token of the answer, else 0, float32 [B, T].
        lengths: tokens of prompt and answer, int32 [B].
        ended: whether the answer has its end, bool [B].
    """

    tokens: jax.Array
    targets: jax.Array
    mask: jax.Array
    lengths: jax.Array
    ended: jax.Array


def left_aligned(prompts: jax.Array, starts: jax.Array, chosen: jax.Array, end_ids: tuple[int, ...]) -> Texts:
    """The rows of prompts and what was drawn after them; lengths alone say what is padding, never an id.

    Args:
        prompts: int32 [B, P], padded at the front.
        starts: first slot of each prompt, int32 [B].
        chosen: int32 [B, N]; -1 after the end of an answer.
        end_ids: tokens that end an answer.
    """
    drawn = (chosen >= 0).sum(1)
    whole = jnp.concatenate([prompts, jnp.maximum(chosen, 0)], axis=1)
    length = whole.shape[1]
    place = jnp.arange(length)
    prompt = prompts.shape[1] - starts
    lengths = prompt + drawn
    tokens = jnp.take_along_axis(whole, jnp.minimum(place + starts[:, None], length - 1), axis=1)
    tokens = jnp.where(place < lengths[:, None], tokens, 0)
    targets = jnp.pad(tokens[:, 1:], ((0, 0), (0, 1)))
    mask = (place >= prompt[:, None] - 1) & (place < lengths[:, None] - 1)
    last = jnp.take_along_axis(chosen, drawn[:, None] - 1, axis=1)[:, 0]
    return Texts(tokens, targets, mask.astype(jnp.float32), lengths, jnp.isin(last, jnp.asarray(end_ids)))
