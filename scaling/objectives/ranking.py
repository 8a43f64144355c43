"""Ranking of completions: what a reward model is trained by (InstructGPT, arXiv 2203.02155, section 3.5)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scaling.config import schema as cfg
from scaling.data.batch import Scored
from scaling.model.decoder import Decoder
from scaling.objectives.objective import Objective, Sums, forward, read

BINS = 5  # of confidence, from 1/2 to 1


class Ranked(NamedTuple):
    """What a prompt's comparisons amount to, float32 [P] each, but for the bins; 0 where a prompt has none.

    Attributes:
        loss: mean over its pairs of -log sigmoid(better - worse).
        accuracy: share of its pairs whose better one has the higher score; a tie counts half.
        margin: mean of better - worse.
        counts: 1 if it has a pair, else 0.
        confident: share of its pairs in each bin of confidence, sigmoid(|better - worse|), [P, BINS].
        hits: share of its pairs that are in the bin and right, [P, BINS].
    """

    loss: jax.Array
    accuracy: jax.Array
    margin: jax.Array
    counts: jax.Array
    confident: jax.Array
    hits: jax.Array


def compare(scores: jax.Array, ranks: jax.Array, there: jax.Array) -> Ranked:
    """All pairs of each prompt; the mean is over a prompt's pairs first, so no prompt counts more for having many.

    Args:
        scores: of the completions, float32 [P, K].
        ranks: 1 = best; equal ranks are ties, which make no pair; [P, K].
        there: which completions exist, bool [P, K].
    """
    pairs = there[:, :, None] & there[:, None, :] & (ranks[:, :, None] < ranks[:, None, :])
    weights = pairs / jnp.maximum(pairs.sum((1, 2), keepdims=True), 1)
    # What is no pair may hold anything, also what is not finite: it is taken out before it is used.
    lead = jnp.where(pairs, scores[:, :, None] - scores[:, None, :], 0.0)

    def mean(each: jax.Array) -> jax.Array:
        return (weights * each).sum((1, 2))

    right = (lead > 0) + 0.5 * (lead == 0)
    places = jnp.clip(((jax.nn.sigmoid(jnp.abs(lead)) - 0.5) * 2 * BINS).astype(jnp.int32), 0, BINS - 1)
    within = weights[..., None] * jax.nn.one_hot(places, BINS)
    return Ranked(
        loss=mean(jax.nn.softplus(-lead)),
        accuracy=mean(right),
        margin=mean(lead),
        counts=pairs.any((1, 2)).astype(jnp.float32),
        confident=within.sum((1, 2)),
        hits=(within * right[..., None]).sum((1, 2)),
    )


def ranking(config: cfg.Config) -> Objective:
    """The objective of a reward model: rows of a ``Scored`` batch, ``config.align.completions`` of a prompt together.

    A completion is computed once, whatever the number of its pairs. The sums are over prompts, so a batch's loss is the
    mean over prompts of the mean over pairs, on any number of devices and microbatches.
    """
    group = config.align.completions

    def objective(model: Decoder, frozen: Any, batch: Scored, key: jax.Array | None) -> Sums:
        hidden, batch, routers = forward(model, batch, key, config.train.pipeline_microbatches)
        scores = read(model, hidden, batch)[:, 0].reshape(-1, group)
        ranks = (batch.reads * batch.labels).sum(1).reshape(-1, group)
        found = compare(scores, ranks, batch.reads.sum(1).reshape(-1, group) > 0)
        totals = {name: value.sum(0) for name, value in found._asdict().items()}
        weight = totals.pop("counts")
        return Sums(totals["loss"], weight, totals).with_routers(config.model, routers)

    return objective
