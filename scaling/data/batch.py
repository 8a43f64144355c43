"""The batch, which travels whole from the loader to the objective: NumPy arrays on the host, JAX arrays on devices."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

Array = Any  # numpy.ndarray or jax.Array


class Batch(NamedTuple):
    """Rows of tokens with their targets: a pytree whose arrays all have the same leading dimensions.

    In training these are [microbatches, rows, T], and inside a step [B, T]. After the loader, code goes by
    segments and weights, and never looks for special tokens.

    Attributes:
        tokens: input of the model, int32.
        targets: the token to predict at each position, int32.
        weights: weight of each target in the loss, float32; 0 = it does not count.
        positions: of each token in its text, int32; None = 0, 1, 2, ... in each row.
        segments: non-decreasing number of each token's document in its row, int32: attention stays inside; None = one.
        types: kind of each token (``config.model.token_types``), int32; None = all 0.
        source: tokens that an encoder reads (``config.model.encoder_layers``), int32 [..., S]; None = no encoder.
        source_segments: number of the text of each of them, int32 [..., S]: the tokens of segment 0, which is that of
            all tokens where ``segments`` is None, see those with a 0; padding has the number after the last text's.
        source_positions: of each of them in its text, int32 [..., S]; None = 0, 1, 2, ... in each row.
        draws: for each token a number in [0, 1), drawn uniformly, float32: by it a generator replaces the token; None =
            no generator (``config.model.generator_layers``).
        order: who sees whom by a number of each token, int32 (``AttentionContext.order``); None = that of the text.
    """

    tokens: Array
    targets: Array
    weights: Array
    positions: Array | None = None
    segments: Array | None = None
    types: Array | None = None
    source: Array | None = None
    source_segments: Array | None = None
    source_positions: Array | None = None
    draws: Array | None = None
    order: Array | None = None


class Scored(NamedTuple):
    """Rows of which one state each is read: what reward models and classifiers are trained on. Fields as of ``Batch``.

    Attributes:
        weights: of the targets in an auxiliary language-model loss; 0 where there is none.
        reads: 1 at the token whose final state is read, else 0, float32 [B, T]; a row without a 1 is padding.
        labels: at that token what is known of the row, such as its rank or class, else 0, float32 [B, T].
    """

    tokens: Array
    targets: Array
    weights: Array
    positions: Array | None
    segments: Array | None
    reads: Array
    labels: Array
    types: Array | None = None


def scored(ids: np.ndarray, room: int, label: float, weight: float = 0.0, types: np.ndarray | None = None) -> Scored:
    """The row of a text that is read at its last token, or by an encoder at its first.

    Args:
        ids: int32 [n], at most ``room``; none = a row of padding.
        room: T.
        label: of the row.
        weight: of each token of the text but the first, as a target of an auxiliary loss.
        types: of an encoder's row the kind of each token, int32 [n]; then padding is a segment of its own.

    Returns:
        Arrays [T].
    """
    tokens, targets = np.zeros(room, np.int32), np.zeros(room, np.int32)
    weights, reads, labels = (np.zeros(room, np.float32) for _ in range(3))
    read = len(ids) - 1 if types is None else 0
    if len(ids):
        tokens[: len(ids)], targets[: len(ids) - 1] = ids, ids[1:]
        weights[: len(ids) - 1] = weight
        reads[read], labels[read] = 1, label
    if types is None:
        return Scored(tokens, targets, weights, None, None, reads, labels)
    kinds = np.zeros(room, np.int32)
    kinds[: len(ids)] = types
    padding = (np.arange(room) >= len(ids)).astype(np.int32)
    return Scored(tokens, targets, weights, None, padding, reads, labels, kinds)


def of_sequences(sequences: np.ndarray, counted: np.ndarray | None = None, separator: int | None = None) -> Batch:
    """The batch of next-token prediction.

    Args:
        sequences: int32 [..., T+1]; each token but the first is the target of the one before it.
        counted: which sequences count, bool [...]; None = all.
        separator: the end-of-text token, where attention is to stay inside documents; as an input it is the first
            token of the next document, at position 0. None = documents see each other (GPT-3's packing).
    """
    tokens, targets = sequences[..., :-1], sequences[..., 1:]
    weights = np.ones(targets.shape, np.float32)
    if counted is not None:
        weights *= counted[..., None]
    if separator is None:
        return Batch(tokens, targets, weights)
    segments = np.cumsum(tokens == separator, axis=-1, dtype=np.int32)
    return Batch(tokens, targets, weights, restarted(segments), segments)


def filled(shape: tuple[int, int], items: Mapping[tuple[int, int], Any], separator: int | None = None) -> Any:
    """A batch of what its places hold; places without anything are zeros that do not count.

    Args:
        shape: of the places [microbatches, rows].
        items: by place: sequences int32 [T+1] for next-token prediction, or rows, which are named tuples of arrays or
            None, such as a ``Batch`` of arrays [T].
        separator: as of ``of_sequences``; for sequences.
    """
    first = next(iter(items.values()))

    def stacked(arrays: Mapping[tuple[int, int], np.ndarray], like: np.ndarray) -> np.ndarray:
        whole = np.zeros((*shape, *like.shape), like.dtype)
        for place, array in arrays.items():
            whole[place] = array
        return whole

    if isinstance(first, np.ndarray):
        counted = stacked({place: np.ones((), bool) for place in items}, np.ones((), bool))
        return of_sequences(stacked(items, first), counted, separator)
    fields = first._fields
    columns = {name: {place: getattr(item, name) for place, item in items.items()} for name in fields}
    likes = {name: getattr(first, name) for name in fields}
    return type(first)(*(None if likes[name] is None else stacked(columns[name], likes[name]) for name in fields))


def restarted(segments: np.ndarray) -> np.ndarray:
    """Position of each token inside its segment, int32 [..., T]."""
    index = np.arange(segments.shape[-1], dtype=np.int32)
    starts = np.concatenate([np.ones_like(segments[..., :1]), np.diff(segments, axis=-1)], axis=-1) != 0
    return index - np.maximum.accumulate(np.where(starts, index, 0), axis=-1)
