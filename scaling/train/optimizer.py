"""Optimizers by name: AdamW with the papers' values, or any of Optax; decay and per-parameter scales around it."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from scaling.config import schema as cfg
from scaling.model import decoder, lora
from scaling.model.parametrization import Parametrization, parametrization

# Only for these there is a rule of muP.
_WITH_MUP = ("adamw", "lion")
NO_ADAPTERS = cfg.Lora()
# Arguments that are ours to give: the learning rate is the step's, decay is added around all optimizers alike.
_OURS = ("learning_rate", "weight_decay", "weight_decay_rate", "mask", "weight_decay_mask", "adam_weight_decay")


def make_optimizer(
    optimizer: cfg.Optimizer, model: cfg.Model, adapters: cfg.Lora = NO_ADAPTERS
) -> optax.GradientTransformation:
    """Clip, the optimizer, decoupled weight decay, per-parameter multipliers; everything but the learning rate itself.

    The learning rate is an argument of the step (a function of tokens, which the host knows), so the
    caller multiplies the returned updates by it: params += lr * updates. With ``adamw`` the update is that of
    ``torch.optim.AdamW`` (arXiv 1711.05101, algorithm 2, with decay multiplied by the learning rate). Another name is a
    function of Optax (or ``optax.contrib``), called with a learning rate of 1 and ``optimizer.arguments``. What is
    trained is what ``model.lora`` says.

    Raises:
        ValueError: no such optimizer or argument, or a parametrization or ``state_dtype`` that it does not have.
    """
    scales = parametrization(model)
    kinds = lora.metadata(model, adapters, "kind")
    inside = jax.tree.map_with_path(lambda path, kind: decoder.is_stacked([part.key for part in path]), kinds)

    def tree(leaf: Any) -> Any:
        return jax.tree.map(leaf, kinds, inside)

    def decays(kind: str) -> bool:
        return optimizer.decay_biases_and_norms or kind in ("matrix", "embedding", "position")

    def lr_scale(kind: str, inside: bool) -> float:
        return scales.hidden_lr if kind == "matrix" else 1.0

    # Adam with epsilon * c equals Adam with epsilon on gradients divided by c: one transformation serves all.
    def gradient_scale(kind: str, inside: bool) -> float:
        return 1 / _epsilon_scale(scales, kind, inside)

    decay = tree(lambda kind, inside: (scales.hidden_decay if kind == "matrix" else 1.0) if decays(kind) else 0.0)
    whole = optax.chain(
        optax.clip_by_global_norm(optimizer.clip_norm) if optimizer.clip_norm else optax.identity(),
        _scale_by_tree(tree(gradient_scale)) if optimizer.name == "adamw" else optax.identity(),
        _core(optimizer, model, adapters),
        _add_decay(jax.tree.map(lambda d: d * optimizer.weight_decay, decay)),
        _scale_by_tree(tree(lr_scale)),
        optax.scale(-1.0),
    )
    if optimizer.trained == "all":
        return whole
    head = jax.tree.map_with_path(lambda path, _: path[0].key in decoder.HEAD, kinds)
    return optax.chain(whole, _only(head))


def check(optimizer: cfg.Optimizer, model: cfg.Model) -> None:
    """Refuses an optimizer that does not exist, or does not take its arguments (ValueError)."""
    if optimizer.trained == "head" and not model.outputs:
        raise ValueError("config.optimizer.trained='head' needs a model with a head; a model of tokens has 'all'")
    _core(optimizer, model, NO_ADAPTERS)


def _core(optimizer: cfg.Optimizer, model: cfg.Model, adapters: cfg.Lora) -> optax.GradientTransformation:
    """What turns gradients into a direction of ascent."""
    if optimizer.name == "adamw":
        if optimizer.arguments:
            raise ValueError("config.optimizer.arguments are of other optimizers; adamw has beta1, beta2 and epsilon")
        adam = optax.scale_by_adam(b1=optimizer.beta1, b2=optimizer.beta2, eps=optimizer.epsilon)
        return _kept_as(jnp.dtype(optimizer.state_dtype), adam)
    name = f"config.optimizer.name={optimizer.name!r}"
    make = find(optimizer.name)
    if model.parametrization != "standard" and optimizer.name not in _WITH_MUP:
        raise ValueError(
            f"{name} has no rule for config.model.parametrization={model.parametrization!r}; use 'standard', or one of "
            f"{', '.join(_WITH_MUP)}"
        )
    if optimizer.state_dtype != "float32":
        raise ValueError(f"config.optimizer.state_dtype={optimizer.state_dtype!r} is for adamw; {name} needs 'float32'")
    known = inspect.signature(make).parameters
    arguments = dict(optimizer.arguments)
    for key in arguments:
        if key in _OURS or key not in known:
            near = difflib.get_close_matches(key, [k for k in known if k not in _OURS], n=1, cutoff=0)
            raise ValueError(f"config.optimizer.arguments: {key!r} is no argument of {name}; did you mean {near[0]!r}?")
    if "muon_weight_dimension_numbers" in known:
        arguments["muon_weight_dimension_numbers"] = _matrix_axes(model, adapters)
    for key in ("weight_decay", "adam_weight_decay"):
        if key in known:
            arguments[key] = 0.0
    try:
        return optax.chain(make(learning_rate=1.0, **arguments), optax.scale(-1.0))
    except (TypeError, ValueError) as error:
        raise ValueError(f"config.optimizer.arguments={optimizer.arguments}: {error}") from error


def find(name: str) -> Callable[..., optax.GradientTransformation]:
    """The function of Optax that makes an optimizer.

    Raises:
        ValueError: there is none of that name.
    """
    for module in (optax, optax.contrib):
        make = getattr(module, name, None)
        if inspect.isfunction(make) and "learning_rate" in inspect.signature(make).parameters:
            return make
    every = [n for m in (optax, optax.contrib) for n in dir(m) if not n.startswith(("_", "scale"))]
    near = difflib.get_close_matches(name, ["adamw", *every], n=1, cutoff=0)
    raise ValueError(f"config.optimizer.name={name!r} is no optimizer of Optax; did you mean {near[0]!r}?")


def _matrix_axes(model: cfg.Model, adapters: cfg.Lora) -> Any:
    """For Muon, which axes of each matrix are input and which output; None for all that is no matrix in a block.

    The residual stream, or an adapter's rank, is one side; which, its place among the axes says. Layers and experts are
    neither.
    """

    def of(axes: tuple[str | None, ...], kind: str) -> Any:
        if kind != "matrix":
            return None
        side = axes.index(next(name for name in ("rank", "expert_embed", "embed") if name in axes))
        others = tuple(i for i, name in enumerate(axes) if i != side and name not in ("layers", "experts"))
        sides = ((side,), others) if side < min(others) else (others, (side,))
        return optax.contrib.MuonDimensionNumbers(*sides)

    axes, kinds = (lora.metadata(model, adapters, name) for name in ("axes", "kind"))
    return jax.tree.map(of, axes, kinds, is_leaf=lambda x: isinstance(x, tuple))


def _kept_as(dtype: jnp.dtype, adam: optax.GradientTransformation) -> optax.GradientTransformation:
    """Adam whose moments are kept in a narrow type between steps; every step computes in float32.

    Rounded at random, up or down by how near each is (arXiv 1502.02551, section 3): to the nearest, a second moment
    could not fall where 1 - beta2 is below the spacing of bfloat16, and would stay at the largest it ever had.
    """
    if dtype == jnp.float32:
        return adam
    assert dtype == jnp.bfloat16

    def narrow(state: optax.ScaleByAdamState) -> optax.ScaleByAdamState:
        moments, structure = jax.tree.flatten((state.mu, state.nu))
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), state.count), len(moments))
        mu, nu = jax.tree.unflatten(structure, map(_randomly_rounded, moments, keys))
        return optax.ScaleByAdamState(state.count, mu, nu)

    def init(params: Any) -> optax.ScaleByAdamState:
        return narrow(adam.init(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, optax.ScaleByAdamState]:
        mu, nu = jax.tree.map(lambda x: x.astype(jnp.float32), (state.mu, state.nu))
        updates, state = adam.update(updates, optax.ScaleByAdamState(state.count, mu, nu), params)
        return updates, narrow(state)

    return optax.GradientTransformation(init, update)


def _randomly_rounded(x: jax.Array, key: jax.Array) -> jax.Array:
    """float32 to bfloat16, up or down with the odds that keep the mean: noise below the bits that are cut off."""
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    bits = (jax.lax.bitcast_convert_type(x, jnp.uint32) + noise) >> 16
    return jax.lax.bitcast_convert_type(bits.astype(jnp.uint16), jnp.bfloat16)


def _epsilon_scale(scales: Parametrization, kind: str, inside: bool) -> float:
    if inside:
        return scales.hidden_epsilon
    return scales.embedding_epsilon if kind in ("embedding", "position") else 1.0


def _scale_by_tree(factors: Any) -> optax.GradientTransformation:
    if all(f == 1.0 for f in jax.tree.leaves(factors)):
        return optax.identity()
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u, f: u * f, updates, factors))


def _only(trained: Any) -> optax.GradientTransformation:
    """Zero updates, weight decay included, where a tree of truth values is False."""
    return optax.stateless(
        lambda updates, _: jax.tree.map(lambda u, changes: u if changes else jnp.zeros_like(u), updates, trained)
    )


def _add_decay(rates: Any) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, params: jax.tree.map(lambda u, p, r: u + r * p, updates, params, rates))
