"""One table from logical axes to mesh axes; everything that is sharded is sharded by it.

Parameters and activations name their dimensions with logical axes. A mesh has the axes ``stage``
(of the pipeline, each with its layers) and ``data`` (replicas), both over slices, the data-centre
network; ``fsdp`` (shards of the state, and of the batch), ``expert`` (the same, and inside of experts
each with its experts), ``context`` (shards of the sequence, and
of the state) and ``tensor`` (shards of heads, MLP and
vocabulary, and of the sequence between them).

The model runs under ``jax.set_mesh(mesh)`` with automatic sharding: ``constrain`` says where each
activation lies, ``gathered`` says in which layout a parameter enters a product, and XLA derives the
collectives. One device is a mesh too, ``mesh.one_device``, so that the model has no second way through.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

Axes = tuple[str | None, ...]
MeshAxes = str | tuple[str, ...] | None

MESH_AXES = ("stage", "data", "fsdp", "expert", "context", "tensor")
GROUP_AXES = ("data", "fsdp")  # of the rows inside experts
BATCH_AXES = (*GROUP_AXES, "expert")  # of the rows that a stage works on
ROW_AXES = ("stage", *BATCH_AXES)  # of all rows, outside the pipeline
CONTEXT_AXIS = "context"
_TILE = 8  # rows of a tile of a TPU's memory, of 4-byte numbers; fewer are laid out in other tiles
STATE_AXES = ("fsdp", "expert", CONTEXT_AXIS)  # where parameters lie that are gathered for use: ZeRO-3


class Rule(NamedTuple):
    stored: MeshAxes  # where parameters, gradients and optimizer state lie
    used: MeshAxes  # where parameters (gathered for a product) and activations lie
    scattered: MeshAxes = None  # where gradients and moments lie with mesh.shard_optimizer (ZeRO-2); None = as stored


TABLE: dict[str, Rule] = {
    # parameters
    # Gathered layer by layer when used. A replica's part of the optimizer lies inside its shard.
    "embed": Rule(STATE_AXES, None, (*STATE_AXES, "data")),
    "mlp": Rule("tensor", "tensor"),
    "experts": Rule("expert", "expert"),
    "expert_embed": Rule(("fsdp", CONTEXT_AXIS), None, ("fsdp", CONTEXT_AXIS, "data")),
    "heads": Rule("tensor", "tensor"),
    "vocab": Rule("tensor", "tensor"),
    "layers": Rule("stage", "stage"),  # of the stack; and the pipeline's buffers, one entry a stage
    "rank": Rule(None, None),  # of adapters
    # activations
    "rows": Rule(ROW_AXES, ROW_AXES),
    "batch": Rule(BATCH_AXES, BATCH_AXES),
    "groups": Rule(GROUP_AXES, GROUP_AXES),  # rows inside experts
    "slots": Rule(CONTEXT_AXIS, CONTEXT_AXIS),  # tokens of an expert
    "time": Rule(CONTEXT_AXIS, CONTEXT_AXIS),  # the sequence inside tensor-parallel regions, and of tokens
    "sequence": Rule((CONTEXT_AXIS, "tensor"), (CONTEXT_AXIS, "tensor")),  # the residual stream between them
}


def is_axes(x: Any) -> bool:
    """Whether a node of a tree is the logical axes of one array."""
    return type(x) is tuple and all(name is None or isinstance(name, str) for name in x)  # no state of Optax


def stored_spec(axes: Axes) -> P:
    """PartitionSpec in which a parameter with these logical axes is kept."""
    return P(*(TABLE[a].stored if a else None for a in axes))


def scattered_spec(axes: Axes) -> P:
    """PartitionSpec of the gradient and the moments of a parameter, where replicas share them (ZeRO-2)."""
    return P(*((TABLE[a].scattered or TABLE[a].stored) if a else None for a in axes))


def current_mesh() -> AbstractMesh:
    """The mesh that is set; the model, the objectives and the train step run under one."""
    mesh = jax.sharding.get_abstract_mesh()
    assert not mesh.empty, "no mesh is set; use `with jax.set_mesh(scaling.parallel.mesh.one_device())`"
    return mesh


def platform() -> str:
    """Where the computation being traced will run; a compiler's mesh may be of devices that are not there."""
    return current_mesh().abstract_device.platform


_scatters = contextvars.ContextVar("scatters", default=False)


@contextlib.contextmanager
def scattered_gradients(on: bool) -> Iterator[None]:
    """While gradients are traced inside, each is asked for as ``scattered_spec`` says, and not as parameters lie."""
    token = _scatters.set(on)
    try:
        yield
    finally:
        _scatters.reset(token)


def gradient_spec(axes: Axes) -> P:
    """PartitionSpec in which the gradient of a parameter is asked for."""
    return scattered_spec(axes) if _scatters.get() else stored_spec(axes)


def with_gradient_layout(grad: jax.Array, axes: Axes) -> jax.Array:
    """Pins the gradient of a parameter to ``gradient_spec``."""
    return jax.lax.with_sharding_constraint(grad, gradient_spec(axes))


def used_spec(axes: Axes) -> P:
    """PartitionSpec of an activation, or of a parameter inside a product."""
    return P(*(TABLE[a].used if a else None for a in axes))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins an activation to the layout of its logical axes, one name (or None) a dimension."""
    return jax.lax.with_sharding_constraint(x, dividing_spec(x, *axes))


def dividing_spec(x: jax.Array, *axes: str | None) -> P:
    """The layout of an activation's logical axes on the present mesh.

    A dimension that the mesh axes do not divide stays whole: that happens for the short and odd
    shapes of generation; training shapes are checked beforehand by ``scaling.config.resolve``.
    """
    mesh = current_mesh()
    return P(*(s if size % _extent(mesh, s) == 0 else None for s, size in zip(used_spec(axes), x.shape, strict=True)))


def in_rows(x: jax.Array) -> jax.Array:
    """On a TPU, a device's part of x with its last dimension side by side in memory; for use under ``shard_map``.

    Of the whole x, the compiler's partitioner would make each device hold all.
    """
    return with_layout_constraint(x, Layout(tuple(range(x.ndim)))) if platform() == "tpu" else x


def kept_in_rows(x: jax.Array, *axes: str | None) -> jax.Array:
    """x of these logical axes with its features side by side in memory, as the products of the backward pass want it.

    The TPU's compiler would rather keep what a layer saves the other way round, for the product that made it, and turn
    each layer's share again when it is read: 4 % of the cycles of a step of 1.3B for the residual stream, 13 % of one
    of LLaMA-2-7B for the hidden features of the MLP (docs/notes/compiling.md).
    """
    if platform() != "tpu":
        return x
    spec = dividing_spec(x, *axes)
    return jax.shard_map(in_rows, in_specs=spec, out_specs=spec)(x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gathered(w: jax.Array, axes: Axes) -> jax.Array:
    """Lays a parameter out for use: whole over ``fsdp``, ``expert`` and ``context``, still over ``tensor``.

    The first constraint keeps ``w`` (already cast to the compute dtype) sharded as it is stored, so that
    the cast happens before the gather: otherwise XLA gathers float32 and casts afterwards. Without the
    backward pass of its own, XLA would all-reduce the whole gradient; with it a reduce-scatter does.
    """
    w = jax.lax.with_sharding_constraint(w, stored_spec(axes))
    if parts := _whole_rows(w, axes):
        w = jax.lax.with_sharding_constraint(w, parts)
    return constrain(w, *axes)


def _gathered_forward(w: jax.Array, axes: Axes) -> tuple[jax.Array, None]:
    return gathered(w, axes), None


def _gathered_backward(axes: Axes, _: None, grad: jax.Array) -> tuple[jax.Array]:
    if (parts := _whole_rows(grad, axes)) and not _scatters.get():  # replicas that share it want less than that
        grad = jax.lax.with_sharding_constraint(grad, parts)
    return (with_gradient_layout(grad, axes),)


gathered.defvjp(_gathered_forward, _gathered_backward)


def _whole_rows(w: jax.Array, axes: Axes) -> P | None:
    """Where a matrix should lie when a TPU gathers it, or scatters its gradient; None = where it is stored.

    A gathered matrix has the parts of all devices one after the other, so its layout depends on them. Where the last
    dimension is stored in parts that fill no tile of ``_TILE`` (13B over 256 devices: 20 of 5,120 columns), the
    compiler turns the whole matrix after each gather, which takes a quarter of the cycles of such a step
    (docs/notes/compiling.md). An all-to-all of the parts beforehand makes them rows.
    """
    if platform() != "tpu" or w.ndim < 2 or not axes[-1] or TABLE[axes[-1]].used is not None:
        return None  # the last dimension is not gathered
    stored = stored_spec(axes)
    columns = _extent(current_mesh(), stored[-1])
    if columns == 1 or not (w.shape[-1] // columns) % _TILE:
        return None
    rows = (*_names(stored[-2]), *_names(stored[-1]))
    return None if w.shape[-2] % (_TILE * _extent(current_mesh(), rows)) else P(*stored[:-2], rows, None)


def features_apart(x: jax.Array) -> jax.Array:
    """Lays activations [B, T, D] out with D over ``fsdp`` and ``expert``, B over the other axes only: an all-to-all.

    So the gradient of a table, a sum over tokens, comes as the table is stored. Left to itself the compiler makes
    these activations whole on every device, or over slices.
    """
    mesh = current_mesh()
    batch, length, features = x.shape
    apart = ("fsdp", "expert")
    if batch % _extent(mesh, ROW_AXES) or features % _extent(mesh, apart):
        return x
    outer = tuple(axis for axis in ROW_AXES if axis not in apart)
    groups, free = _extent(mesh, outer), P.UNCONSTRAINED
    x = x.reshape(groups, batch // groups, length, features)
    x = jax.lax.with_sharding_constraint(x, P(outer, apart, free, None))
    x = jax.lax.with_sharding_constraint(x, P(outer, None, free, apart))
    return x.reshape(batch, length, features)


def _extent(mesh: AbstractMesh, axes: MeshAxes) -> int:
    size = 1
    for name in _names(axes):
        size *= mesh.shape[name]
    return size


def _names(axes: MeshAxes) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else axes or ()


def context_devices() -> int:
    """Parts that a sequence lies in."""
    return current_mesh().shape[CONTEXT_AXIS]


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Sharding of scalars: a copy on every device."""
    return NamedSharding(mesh, P())


def on_every_device(x: np.ndarray, mesh: jax.sharding.Mesh) -> jax.Array:
    """An array that is whole on each device; every process passes the same."""
    return jax.make_array_from_callback(x.shape, replicated(mesh), lambda index: x[index])


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Sharding of a step's arrays of tokens and their weights [microbatches, sequences, tokens]."""
    return NamedSharding(mesh, P(None, *used_spec(("rows", "time"))))
