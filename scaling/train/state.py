"""Training state: a plain dict of parameters, optimizer state and step, born sharded."""

from collections.abc import Callable
from typing import Any, NamedTuple, NotRequired, TypedDict

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from scaling.config import schema as cfg
from scaling.model import decoder, lora
from scaling.parallel.sharding import Axes, is_axes, scattered_spec, stored_spec
from scaling.train.optimizer import make_optimizer
from scaling.train.reliability import guard


class TrainState(TypedDict):
    params: decoder.Params  # those that are trained, see ``model.lora``
    optimizer: Any  # optax state; its moments are trees like params
    step: jax.Array  # int32, steps done
    guard: guard.GuardState
    beside: NotRequired[Any]  # what some recipes keep besides, such as a value function; see ``Beside``


class Beside(NamedTuple):
    """How a recipe makes the part of a state that is its own.

    Attributes:
        shapes: its tree of ``jax.ShapeDtypeStruct`` with shardings.
        make: its tree of arrays before the first step, of the parameters that training begins with, which it may not
            keep: the first step takes them over.
    """

    shapes: Any
    make: Callable[[decoder.Params], Any]


_SMALL = 1024  # numbers that every device may hold


def shardings(config: cfg.Config, mesh: Mesh) -> dict[str, Any]:
    """NamedSharding of every leaf of the state: moments lie like gradients, scalars are replicated."""
    scalar = NamedSharding(mesh, P())
    params = lora.shardings(config.model, config.lora, mesh)
    state = jax.eval_shape(_optimizer(config).init, lora.abstract(config.model, config.lora))
    spec = _gradient_spec(config)
    moments = jax.tree.map(lambda axes: NamedSharding(mesh, spec(axes)), state_axes(config, state), is_leaf=is_axes)
    judged = jax.tree.map(lambda _: scalar, jax.eval_shape(guard.create))
    return {"params": params, "optimizer": moments, "step": scalar, "guard": judged}


def state_axes(config: cfg.Config, state: Any) -> Any:
    """Logical axes of every leaf of an optimizer's state: those of the parameter that it belongs to.

    A leaf belongs to the parameter whose path ends its own. It has the parameter's shape, or lacks one dimension of it
    (Adafactor's factors). Counts and coefficients, which belong to none, are small and lie whole on every device.

    Raises:
        ValueError: a larger leaf that belongs to none.
    """
    shapes = _by_path(lora.abstract(config.model, config.lora))
    axes = _by_path(lora.metadata(config.model, config.lora, "axes"), is_leaf=is_axes)

    def of_leaf(path: Any, leaf: Any) -> Axes:
        names = tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
        for start in range(len(names)):
            if (owner := names[start:]) in shapes:
                shape = shapes[owner].shape
                if leaf.shape == shape:
                    return axes[owner]
                for missing in range(len(shape)):
                    if leaf.shape == shape[:missing] + shape[missing + 1 :]:
                        return axes[owner][:missing] + axes[owner][missing + 1 :]
        if leaf.size <= _SMALL:
            return (None,) * leaf.ndim
        raise ValueError(
            f"config.optimizer.name={config.optimizer.name!r} keeps {jax.tree_util.keystr(path)} of shape "
            f"{leaf.shape}, which is the shape of no parameter; it cannot be sharded"
        )

    return jax.tree.map_with_path(of_leaf, state)


def _by_path(tree: Any, is_leaf: Any = None) -> dict[tuple[str, ...], Any]:
    leaves = jax.tree.leaves_with_path(tree, is_leaf=is_leaf)
    return {tuple(key.key for key in path): leaf for path, leaf in leaves}


def gradient_shardings(config: cfg.Config, mesh: Mesh) -> decoder.Params:
    """NamedSharding of every gradient: like its parameter, or in smaller shards with ``mesh.shard_optimizer``."""
    return lora.shardings(config.model, config.lora, mesh, _gradient_spec(config))


def _gradient_spec(config: cfg.Config) -> Callable[[Axes], P]:
    return scattered_spec if config.mesh.shard_optimizer else stored_spec


def abstract_state(config: cfg.Config, mesh: Mesh) -> TrainState:
    """Shapes, types and shardings of the state; nothing is allocated."""
    base = decoder.abstract(config.model)
    shapes = jax.eval_shape(lambda base: _create(config, jax.random.key(0), base), base)
    where = TrainState(**shardings(config, mesh))  # type: ignore[typeddict-item]
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where)


def abstract_base(config: cfg.Config, mesh: Mesh) -> decoder.Params | None:
    """Shapes, types and shardings of what adapters change; None without adapters."""
    if not config.lora.rank:
        return None
    shapes, where = decoder.abstract(config.model), decoder.shardings(config.model, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where)


def create_state(config: cfg.Config, mesh: Mesh, base: decoder.Params | None = None) -> TrainState:
    """Initial state, each device making its own shard; the same numbers on every mesh. ``base`` as ``lora`` has it."""
    with jax.set_mesh(mesh):
        make = jax.jit(lambda key, base: _create(config, key, base), out_shardings=shardings(config, mesh))
        return make(jax.random.key(config.seed), base)


def _create(config: cfg.Config, key: jax.Array, base: decoder.Params | None) -> TrainState:
    params = lora.initialize(config, key, base)
    return TrainState(
        params=params,
        optimizer=_optimizer(config).init(params),
        step=jnp.zeros((), jnp.int32),
        guard=guard.create(),
    )


def _optimizer(config: cfg.Config) -> Any:
    return make_optimizer(config.optimizer, config.model, config.lora)


def parameter_count(params: Any) -> int:
    """Numbers in a parameter tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
