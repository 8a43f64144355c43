"""Training state: a plain dict of parameters, optimizer state and step, born sharded."""

from typing import Any, TypedDict

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from scaling import config as cfg
from scaling.model import decoder
from scaling.parallel.sharding import scattered_spec, stored_spec
from scaling.train.optimizer import adamw
from scaling.train.reliability import guard


class TrainState(TypedDict):
    params: decoder.Params
    optimizer: Any  # optax state; its moments are trees like params
    step: jax.Array  # int32, steps done
    guard: guard.GuardState


def shardings(config: cfg.Config, mesh: Mesh) -> dict[str, Any]:
    """NamedSharding of every leaf of the state: moments lie like gradients, scalars are replicated."""
    params = decoder.shardings(config.model, mesh)
    gradients = gradient_shardings(config, mesh)
    scalar = NamedSharding(mesh, P())
    state = jax.eval_shape(adamw(config.optimizer, config.model).init, decoder.abstract(config.model))
    structure: Any = jax.tree.structure(params)

    def like_params(part: Any) -> bool:
        return bool(structure == jax.tree.structure(part))

    # (optax.tree.map_params does this too, but makes arrays, which a mesh without hardware cannot hold.)
    moments = jax.tree.map(lambda part: gradients if like_params(part) else scalar, state, is_leaf=like_params)
    judged = jax.tree.map(lambda _: scalar, jax.eval_shape(guard.create))
    return {"params": params, "optimizer": moments, "step": scalar, "guard": judged}


def gradient_shardings(config: cfg.Config, mesh: Mesh) -> decoder.Params:
    """NamedSharding of every gradient: like its parameter, or in smaller shards with ``mesh.shard_optimizer``."""
    spec = scattered_spec if config.mesh.shard_optimizer else stored_spec
    return decoder.shardings(config.model, mesh, spec)


def abstract_state(config: cfg.Config, mesh: Mesh) -> TrainState:
    """Shapes, types and shardings of the state; nothing is allocated."""
    shapes = jax.eval_shape(lambda: _create(config, jax.random.key(0)))
    where = TrainState(**shardings(config, mesh))  # type: ignore[typeddict-item]
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where)


def create_state(config: cfg.Config, mesh: Mesh) -> TrainState:
    """Initial state, each device making its own shard; the same numbers on every mesh."""
    with jax.set_mesh(mesh):
        make = jax.jit(lambda key: _create(config, key), out_shardings=shardings(config, mesh))
        return make(jax.random.key(config.seed))


def _create(config: cfg.Config, key: jax.Array) -> TrainState:
    params = decoder.initialize(config.model, key)
    return TrainState(
        params=params,
        optimizer=adamw(config.optimizer, config.model).init(params),
        step=jnp.zeros((), jnp.int32),
        guard=guard.create(),
    )


def parameter_count(params: Any) -> int:
    """Numbers in a parameter tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
