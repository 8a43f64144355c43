"""A small LSTM language model, and a loop that trains any model of tokens: the baseline of ``compare.py``.

The cell is that of Hochreiter and Schmidhuber with a forget gate (Gers et al. 2000). Shapes: B rows, T tokens, H
features, V tokens of the vocabulary.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

LAYERS = 2
Params = dict[str, Any]
Apply = Callable[[Any, jax.Array], jax.Array]  # parameters and tokens [B, T] to logits [B, T, V]


def count(width: int, vocabulary: int) -> int:
    """Parameters of a model of so many features: the table, which is also the output's, and the layers."""
    return vocabulary * width + LAYERS * (8 * width**2 + 4 * width)


def flops_per_token(width: int, vocabulary: int) -> float:
    """Training FLOPs: six for each entry of a matrix; the backward pass costs twice the forward pass."""
    return 6.0 * (vocabulary * width + LAYERS * 8 * width**2)


def width_of(parameters: int, vocabulary: int) -> int:
    """The features of the model whose size is the closest."""
    return min(range(1, 4096), key=lambda width: abs(count(width, vocabulary) - parameters))


def initialize(key: jax.Array, width: int, vocabulary: int) -> Params:
    """Random weights: 1 / sqrt(H) as usual for an LSTM, and a bias of 1 for the forget gate (Jozefowicz 2015)."""
    table, *keys = jax.random.split(key, 1 + 2 * LAYERS)
    bound = width**-0.5

    def matrix(key: jax.Array) -> jax.Array:
        return jax.random.uniform(key, (width, 4 * width), minval=-bound, maxval=bound)

    bias = jnp.zeros(4 * width).at[width : 2 * width].set(1.0)
    layers = [
        {"inner": matrix(a), "outer": matrix(b), "bias": bias} for a, b in zip(keys[::2], keys[1::2], strict=True)
    ]
    return {"tokens": jax.random.normal(table, (vocabulary, width)) * bound, "layers": layers}


def apply(params: Params, tokens: jax.Array) -> jax.Array:
    """Logits of the next token, float32 [B, T, V], of tokens int32 [B, T]; each row begins with a state of zeros."""
    x = params["tokens"][tokens]
    for layer in params["layers"]:
        x = _layer(layer, x)
    return x @ params["tokens"].T


def _layer(layer: Params, x: jax.Array) -> jax.Array:
    """[B, T, H] to [B, T, H]. The products with inputs are one, before the recurrence."""
    given = jnp.swapaxes(x @ layer["outer"] + layer["bias"], 0, 1)
    zeros = jnp.zeros((x.shape[0], x.shape[2]))

    def cell(state: tuple[jax.Array, jax.Array], given: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        hidden, memory = state
        enters, forgets, leaves, new = jnp.split(given + hidden @ layer["inner"], 4, axis=1)
        memory = jax.nn.sigmoid(forgets) * memory + jax.nn.sigmoid(enters) * jnp.tanh(new)
        hidden = jax.nn.sigmoid(leaves) * jnp.tanh(memory)
        return (hidden, memory), hidden

    return jnp.swapaxes(jax.lax.scan(cell, (zeros, zeros), given, unroll=8)[1], 0, 1)


class Rows(NamedTuple):
    """Tokens int32 [B, T], what follows each, and how much that counts, float32 [B, T]."""

    tokens: Any
    targets: Any
    weights: Any


def of_sequences(sequences: np.ndarray) -> Rows:
    """Of sequences [B, T + 1] of which every token counts."""
    return Rows(sequences[:, :-1], sequences[:, 1:], np.ones(sequences[:, 1:].shape, np.float32))


def loss(apply: Apply, params: Any, rows: Rows) -> jax.Array:
    """Mean over tokens, nats."""
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(apply(params, rows.tokens)), rows.targets[..., None], 2)[..., 0]
    return -(rows.weights * log_probs).sum() / rows.weights.sum()


def train(apply: Apply, params: Any, batches: Iterable[Rows], steps: int, lr: float) -> Any:
    """Parameters after so many batches of AdamW, with warm-up of a tenth and a cosine to a tenth, as the ladder's runs.

    Args:
        apply: the model.
        params: initial.
        batches: endless.
        steps: to be made.
        lr: at the end of the warm-up.
    """
    schedule = optax.warmup_cosine_decay_schedule(0.0, lr, max(1, steps // 10), steps, 0.1 * lr)
    matrices = jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b1=0.9, b2=0.95, weight_decay=0.1, mask=matrices)
    )

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, rows: Rows) -> tuple[Any, Any]:
        gradient = jax.grad(loss, argnums=1)(apply, params, rows)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.copy, params)  # what is given stays
    state = optimizer.init(params)
    for _, rows in zip(range(steps), batches, strict=False):
        params, state = step(params, state, rows)
    return params


def mean_loss(apply: Apply, params: Any, sequences: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean loss of held-out sequences [N, T + 1], and that of each place in the row [T], nats a token."""

    @jax.jit
    def each(params: Any, part: np.ndarray) -> jax.Array:
        log_probs = jax.nn.log_softmax(apply(params, part[:, :-1]))
        return -jnp.take_along_axis(log_probs, part[:, 1:, None], 2)[..., 0]

    found = np.concatenate([np.asarray(each(params, part)) for part in parts(sequences)]).astype(np.float64)
    return float(found.mean()), found.mean(0)


def parts(sequences: np.ndarray) -> Iterator[np.ndarray]:
    """Sequences, 64 at a time."""
    for first in range(0, len(sequences), 64):
        yield sequences[first : first + 64]
