"""Vectors of texts: final states of a model, made one for each text (Reimers and Gurevych, arXiv 1908.10084)."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from scaling.config import schema as cfg
from scaling.data.tokenizer import Tokenizer
from scaling.interop.logits import padded
from scaling.model import decoder
from scaling.parallel.mesh import one_device

POOLS = ("mean", "first", "last", "pooler")


def states(
    network: cfg.Network,
    params: decoder.Params,
    ids: np.ndarray,
    mask: np.ndarray | None = None,
    types: np.ndarray | None = None,
) -> jax.Array:
    """Final hidden states, float32 [B, T, D].

    Args:
        network: resolved.
        params: as ``decoder.initialize`` makes them.
        ids: int32 [B, T].
        mask: 1 at tokens, 0 at padding, int32 [B, T]; None = no padding.
        types: kinds of the tokens, int32 [B, T]; None = all 0.
    """
    network = cfg.Network(network.model, dataclasses.replace(network.compute, dtype="float32"))
    with jax.set_mesh(one_device()):
        return _states(network, params, ids, mask, types)


@functools.partial(jax.jit, static_argnums=0)
@jax.default_matmul_precision("highest")
def _states(network, params, ids, mask, types):
    return decoder.merge(network, params)(ids, padded(mask, types))


def vectors(
    network: cfg.Network,
    params: decoder.Params,
    words: Tokenizer,
    texts: Sequence[str],
    pool: str = "mean",
    rows: int = 32,
) -> np.ndarray:
    """A vector for each text.

    Args:
        network: resolved.
        params: as ``decoder.initialize`` makes them.
        words: tokenizer.
        texts: what an encoder reads framed (``Tokenizer.framed``), and a decoder after ``Tokenizer.start``.
        pool: of a text's final states: their mean, the first, the last, or ``pooler``'s of the first (BERT).
        rows: texts at a time; those of similar length go together.

    Returns:
        float32 [texts, D].

    Raises:
        ValueError: a text that does not fit the model; no such pool; the model has no pooler, or has two stacks.
    """
    model = network.model
    if model.encoder_layers:
        raise ValueError("the model has an encoder beside a decoder; only one of them alone gives vectors")
    if pool not in POOLS:
        raise ValueError(f"pool={pool!r} must be one of {', '.join(POOLS)}")
    if pool == "pooler" and not model.pooler:
        raise ValueError("the model has no pooler; take mean, first or last")
    read = [_read(words, text, model.causal) for text in texts]
    for number, (ids, _) in enumerate(read):
        if not 0 < len(ids) <= model.context_length:
            raise ValueError(f"text {number + 1} has {len(ids)} tokens; the model reads 1 to {model.context_length}")
    order = sorted(range(len(read)), key=lambda i: len(read[i][0]))
    found = np.empty((len(read), model.d_output), np.float32)
    merged = decoder.merge(network, params)
    for first in range(0, len(order), rows):
        some = order[first : first + rows]
        length = min(model.context_length, -(-len(read[some[-1]][0]) // 16) * 16)  # few lengths, few compilations
        ids, mask, types = (np.zeros((rows, length), np.int32) for _ in range(3))
        for row, i in enumerate(some):
            size = len(read[i][0])
            ids[row, :size], types[row, :size], mask[row, :size] = *read[i], 1
        mask[len(some) :, 0] = 1  # rows of padding see one token, so that no mean is of nothing
        made = states(network, params, ids, mask, types if model.token_types > 1 else None)
        if pool == "pooler":
            with jax.set_mesh(one_device()):
                taken = merged.pooled(made[:, 0])
        else:
            taken = _POOLED[pool](made, mask)
        found[some] = np.asarray(taken)[: len(some)]
    return found


def _mean(states: jax.Array, mask: np.ndarray) -> jax.Array:
    return jnp.einsum("btd,bt->bd", states, mask.astype(np.float32)) / mask.sum(1, keepdims=True)


_POOLED = {
    "mean": _mean,
    "first": lambda states, mask: states[:, 0],
    "last": lambda states, mask: states[np.arange(len(mask)), mask.sum(1) - 1],
}


def _read(words: Tokenizer, text: str, causal: bool) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a text as the model reads it, and their types."""
    if not causal:
        return words.framed(text)
    ids = np.asarray([*words.start, *words.encode(text)], np.int32)
    return ids, np.zeros_like(ids)
