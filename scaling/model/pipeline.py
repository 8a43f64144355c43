"""Pipeline parallelism: the stack of layers cut into stages, through which parts of the rows pass one after the other.

The schedule of GPipe (arXiv 1811.06965, section 2.2), written as one program for all devices (GSPMD, arXiv 2105.04663,
section 3.3): a buffer holds what each stage works on, [S, ...] sharded over ``stage``; a tick maps the stage over it
and shifts it by one, which becomes a collective-permute between neighbours. M parts take M + S - 1 ticks, so stages
idle (S - 1) / (M + S - 1) of the time. Then they work on real rows too (their own at the start, old ones at the end),
for there is one program for all; nobody reads the results, so nothing flows back from them but zeros.

Rows lie over the stages outside of the pipeline, as over any other axis of the batch, and so do the embeddings and the
loss. They come to the first stage and leave the last by a second buffer, [S, M/S, ...], that turns the other way: the
first stage takes the slot of this tick, the others pass theirs on to the stage before, the last puts its result there.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from scaling.model.context import AttentionContext
from scaling.parallel.sharding import constrain, current_mesh

AXIS = "stage"
_AXES = {1: (None,), 2: ("sequence", None)}  # after the batch: of the context, and of the residual stream
Layers = tuple[Any, jax.Array | None]  # a tree of arrays [L, ...], and a dropout key a layer or None
Stage = Callable[[Layers, jax.Array, AttentionContext], jax.Array]  # one stage's layers, rows [b, T, D] to [b, T, D]


def stages() -> int:
    """Of the mesh that is set."""
    return current_mesh().shape[AXIS]


def pipelined(
    stage: Stage, layers: Layers, x: jax.Array, context: AttentionContext, microbatches: int, recompute: bool
) -> jax.Array:
    """Rows through all layers, on a mesh with stages.

    Args:
        stage: what a stage does with its layers.
        layers: all of them, L a multiple of the stages, over which the mesh shards the arrays. A part of the rows has
            a dropout key of its own, so dropout draws other masks than without stages.
        x: [B, T, D].
        context: of the rows; its arrays are [B, T].
        microbatches: M, a multiple of the stages; M parts of the rows must divide over the batch axes of the mesh.
        recompute: keep what enters a stage at each tick for the backward pass and compute the rest again.

    Returns:
        [B, T, D].
    """
    count = stages()
    assert microbatches % count == 0 and x.shape[0] % microbatches == 0, (x.shape, microbatches, count)
    slots = microbatches // count
    layers = jax.tree.map(lambda a: a.reshape(count, -1, *a.shape[1:]), layers)

    def work(part: jax.Array, layers: Layers, x: jax.Array, context: Any) -> jax.Array:
        stack, keys = layers
        if keys is not None:
            keys = jax.vmap(jax.random.fold_in, (0, None))(keys, part)
        return stage((stack, keys), x, context)

    work = jax.vmap(work, spmd_axis_name=AXIS)
    if recompute:
        work = jax.checkpoint(work, prevent_cse=False)

    def tick(carry: tuple[Any, Any], time: jax.Array) -> tuple[tuple[Any, Any], None]:
        current, waiting = carry
        slot = time % slots
        turning = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, slot, 1, keepdims=False), waiting)
        x, context = _laid_out(jax.tree.map(lambda new, old: _at(0, new, old), turning, current))
        done = work((time - jnp.arange(count)) % microbatches, layers, x, context), context
        turned = _laid_out(jax.tree.map(lambda old, new: _at(-1, new, jnp.roll(old, -1, axis=0)), turning, done))
        waiting = jax.tree.map(lambda a, new: jax.lax.dynamic_update_index_in_dim(a, new, slot, 1), waiting, turned)
        return (_laid_out(jax.tree.map(lambda a: jnp.roll(a, 1, axis=0), done)), waiting), None

    waiting = jax.tree.map(lambda a: _dealt(a, count, slots), (x, context))
    first = _laid_out(jax.tree.map(lambda a: a[:, 0], waiting))
    (_, (out, _)), _ = jax.lax.scan(tick, (first, waiting), jnp.arange(microbatches + count - 1))
    # The last stage's first result came at tick S - 1.
    out = jnp.roll(out, 1 - count, axis=1).swapaxes(1, 2).reshape(x.shape)
    return constrain(out, "rows", "sequence", None)


def _dealt(rows: jax.Array, count: int, slots: int) -> jax.Array:
    """Rows [B, ...] as parts [S, M/S, B/M, ...], each stage's and each device's from the rows that it holds."""
    dealt = rows.reshape(count, -1, slots, *rows.shape[1:]).swapaxes(1, 2)
    return constrain(dealt, "layers", None, "batch", *_AXES[rows.ndim - 1])


def _laid_out(parts: Any) -> Any:
    """A part [S, b, ...] for each stage, in the stage that works on it."""
    return jax.tree.map(lambda a: constrain(a, "layers", "batch", *_AXES[a.ndim - 2]), parts)


def _at(place: int, new: jax.Array, old: jax.Array) -> jax.Array:
    """``old``, and ``new`` in one stage; no stage asks another."""
    here = jnp.arange(len(old)) == place % len(old)
    return jnp.where(here.reshape(-1, *[1] * (old.ndim - 1)), new, old)
