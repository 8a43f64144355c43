"""AdamW with the papers' values, decay masks and per-parameter scales (muP, CompleteP)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from scaling import config as cfg
from scaling.model import decoder
from scaling.model.parametrization import Parametrization, parametrization


def adamw(optimizer: cfg.Optimizer, model: cfg.Model) -> optax.GradientTransformation:
    """Clip, Adam, decoupled weight decay, per-parameter multipliers; everything but the learning rate itself.

    The learning rate is an argument of the step (a function of tokens, which the host knows), so the
    caller multiplies the returned updates by it: params += lr * updates. Same update as
    ``torch.optim.AdamW`` (arXiv 1711.05101, algorithm 2, with decay multiplied by the learning rate).
    """
    scales = parametrization(model)
    kinds = decoder.metadata(model, "kind")
    inside = jax.tree.map_with_path(lambda path, kind: path[0].key == decoder.STACK, kinds)

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
    return optax.chain(
        optax.clip_by_global_norm(optimizer.clip_norm) if optimizer.clip_norm else optax.identity(),
        _scale_by_tree(tree(gradient_scale)),
        _kept_as(
            jnp.dtype(optimizer.state_dtype),
            optax.scale_by_adam(b1=optimizer.beta1, b2=optimizer.beta2, eps=optimizer.epsilon),
        ),
        _add_decay(jax.tree.map(lambda d: d * optimizer.weight_decay, decay)),
        _scale_by_tree(tree(lr_scale)),
        optax.scale(-1.0),
    )


def _kept_as(dtype: jnp.dtype, adam: optax.GradientTransformation) -> optax.GradientTransformation:
    """Adam whose moments are kept in a narrow type between steps; every step reckons in float32.

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


def _add_decay(rates: Any) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, params: jax.tree.map(lambda u, p, r: u + r * p, updates, params, rates))
