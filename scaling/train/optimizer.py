"""AdamW with the papers' values, decay masks and per-parameter scales (muP, CompleteP)."""

from typing import Any

import jax
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
        return optimizer.decay_biases_and_norms or kind in ("matrix", "embedding")

    def lr_scale(kind: str, inside: bool) -> float:
        return scales.hidden_lr if kind == "matrix" else 1.0

    # Adam with epsilon * c equals Adam with epsilon on gradients divided by c: one transformation serves all.
    def gradient_scale(kind: str, inside: bool) -> float:
        return 1 / _epsilon_scale(scales, kind, inside)

    decay = tree(lambda kind, inside: (scales.hidden_decay if kind == "matrix" else 1.0) if decays(kind) else 0.0)
    return optax.chain(
        optax.clip_by_global_norm(optimizer.clip_norm) if optimizer.clip_norm else optax.identity(),
        _scale_by_tree(tree(gradient_scale)),
        optax.scale_by_adam(b1=optimizer.beta1, b2=optimizer.beta2, eps=optimizer.epsilon),
        _add_decay(jax.tree.map(lambda d: d * optimizer.weight_decay, decay)),
        _scale_by_tree(tree(lr_scale)),
        optax.scale(-1.0),
    )


def _epsilon_scale(scales: Parametrization, kind: str, inside: bool) -> float:
    if inside:
        return scales.hidden_epsilon
    return scales.embedding_epsilon if kind == "embedding" else 1.0


def _scale_by_tree(factors: Any) -> optax.GradientTransformation:
    if all(f == 1.0 for f in jax.tree.leaves(factors)):
        return optax.identity()
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u, f: u * f, updates, factors))


def _add_decay(rates: Any) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, params: jax.tree.map(lambda u, p, r: u + r * p, updates, params, rates))
