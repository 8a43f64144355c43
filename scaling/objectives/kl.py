"""Estimators of the Kullback-Leibler divergence of a policy from a reference, of one sampled token each.

All are functions of the log-ratio, log policy - log reference, of a token drawn from the policy; see
http://joschu.net/blog/kl-approx.html. Their means are alike; as a loss they are not. The expected gradient is 0 for
``k1``, that of KL(policy || reference) for ``k2``, and that of KL(reference || policy) for ``k3``.
"""

import jax
import jax.numpy as jnp

_STEEP = 20.0  # from there on ``k3`` goes on along its tangent, because exp(80) squared is no float32


def k1(log_ratio: jax.Array) -> jax.Array:
    """The log-ratio itself: without bias, of large variance, also negative."""
    return log_ratio


def k2(log_ratio: jax.Array) -> jax.Array:
    """Half its square: with bias, never negative."""
    return 0.5 * jnp.square(log_ratio)


def k3(log_ratio: jax.Array) -> jax.Array:
    """exp(-log_ratio) - 1 + log_ratio: without bias, never negative."""
    other = -log_ratio
    bent = jnp.minimum(other, _STEEP)
    return jnp.exp(bent) * (1 + other - bent) - 1 - other


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
