"""One table from logical axes to mesh axes; everything that is sharded is sharded by it.

Parameters and activations name their dimensions with logical axes. A mesh has the axes ``data``
(replicas; over slices, the data-centre network), ``fsdp`` (shards of the state, and of the batch),
``context`` (shards of the sequence, and of the state) and ``tensor`` (shards of heads, MLP and
vocabulary, and of the sequence between them).

The model runs under ``jax.set_mesh(mesh)`` with automatic sharding: ``constrain`` says where each
activation lies, ``gathered`` says in which layout a parameter enters a product, and XLA derives the
collectives. Without a mesh both do nothing, so the same code runs on one device.
"""

import functools
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

Axes = tuple[str | None, ...]
MeshAxes = str | tuple[str, ...] | None

MESH_AXES = ("data", "fsdp", "context", "tensor")
BATCH_AXES = ("data", "fsdp")
CONTEXT_AXIS = "context"
STATE_AXES = ("fsdp", CONTEXT_AXIS)  # where parameters lie that are gathered for use: ZeRO-3


class Rule(NamedTuple):
    stored: MeshAxes  # where parameters, gradients and optimizer state lie
    used: MeshAxes  # where parameters (gathered for a product) and activations lie


TABLE: dict[str, Rule] = {
    # parameters
    "embed": Rule(STATE_AXES, None),  # gathered layer by layer when used
    "mlp": Rule("tensor", "tensor"),
    "heads": Rule("tensor", "tensor"),
    "vocab": Rule("tensor", "tensor"),
    # activations
    "batch": Rule(BATCH_AXES, BATCH_AXES),
    "time": Rule(CONTEXT_AXIS, CONTEXT_AXIS),  # the sequence inside tensor-parallel regions, and of tokens
    "sequence": Rule((CONTEXT_AXIS, "tensor"), (CONTEXT_AXIS, "tensor")),  # the residual stream between them
}


def stored_spec(axes: Axes) -> P:
    """PartitionSpec in which a parameter with these logical axes is kept."""
    return P(*(TABLE[a].stored if a else None for a in axes))


def used_spec(axes: Axes) -> P:
    """PartitionSpec of an activation, or of a parameter inside a product."""
    return P(*(TABLE[a].used if a else None for a in axes))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins an activation to the layout of its logical axes, one name (or None) a dimension.

    A dimension that the mesh axes do not divide stays whole: that happens for the short and odd
    shapes of generation; training shapes are checked beforehand by ``scaling.resolve``.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    spec = [s if size % _extent(mesh, s) == 0 else None for s, size in zip(used_spec(axes), x.shape, strict=True)]
    return jax.lax.with_sharding_constraint(x, P(*spec))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gathered(w: jax.Array, axes: Axes) -> jax.Array:
    """Lays a parameter out for use: whole over ``fsdp`` and ``context``, still sharded over ``tensor``.

    The first constraint keeps ``w`` (already cast to the compute dtype) sharded as it is stored, so that
    the cast happens before the gather: otherwise XLA gathers float32 and casts afterwards. The gradient is wanted as
    parameters are stored, and never whole: by themselves the constraints would ask for it as ``w`` is used, by an
    all-reduce where a reduce-scatter does.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return w
    return constrain(jax.lax.with_sharding_constraint(w, stored_spec(axes)), *axes)


def _gathered_forward(w: jax.Array, axes: Axes) -> tuple[jax.Array, None]:
    return gathered(w, axes), None


def _gathered_backward(axes: Axes, _: None, grad: jax.Array) -> tuple[jax.Array]:
    if jax.sharding.get_abstract_mesh().empty:
        return (grad,)
    return (jax.lax.with_sharding_constraint(grad, stored_spec(axes)),)


gathered.defvjp(_gathered_forward, _gathered_backward)


def _extent(mesh: Any, axes: MeshAxes) -> int:
    names = (axes,) if isinstance(axes, str) else axes or ()
    size = 1
    for name in names:
        size *= mesh.shape[name]
    return size


def context_devices() -> int:
    """Parts that a sequence lies in, on the mesh that is set; 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape[CONTEXT_AXIS]


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Sharding of scalars: a copy on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Sharding of a step's token arrays, int32 [microbatches, sequences, tokens]."""
    return NamedSharding(mesh, P(None, *used_spec(("batch", "time"))))
