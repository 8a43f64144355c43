"""Positions that are computed and not learned: rotary, sinusoidal, ALiBi. Phases and angles are float32."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scaling.config import schema as cfg
from scaling.parallel.sharding import platform


def rotate(x: jax.Array, positions: jax.Array, rotary: cfg.Rotary) -> jax.Array:
    """Turns pairs of features of each head by angles that grow with the position (RoFormer, arXiv 2104.09864).

    Args:
        x: queries or keys [B, H, T, K].
        positions: int32 [B or 1, T].
        rotary: which features, how fast.

    Returns:
        As x.
    """
    width = rotary.dim or x.shape[-1]
    rates, amplitude = rotary_rates(rotary, x.shape[-1])
    angles = positions[:, None, :, None].astype(jnp.float32) * rates  # [B or 1, 1, T, width / 2]
    cos, sin = jnp.cos(angles) * amplitude, jnp.sin(angles) * amplitude
    if x.dtype == jnp.bfloat16 and platform() == "tpu":
        return _turned_by_product(x, cos, sin, rotary.interleaved)
    turning, still = x[..., :width].astype(jnp.float32), x[..., width:]
    if rotary.interleaved:
        one, other = turning[..., 0::2], turning[..., 1::2]
        turned = jnp.stack([one * cos - other * sin, other * cos + one * sin], axis=-1).reshape(turning.shape)
    else:
        one, other = jnp.split(turning, 2, axis=-1)
        turned = jnp.concatenate([one * cos - other * sin, other * cos + one * sin], axis=-1)
    return jnp.concatenate([turned.astype(x.dtype), still], axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _turned_by_product(x: jax.Array, cos: jax.Array, sin: jax.Array, interleaved: bool) -> jax.Array:
    """``rotate`` for TPUs, whose compiler moves whole arrays to bring the features of a pair together.

    A product with a matrix of 0, 1 and -1 brings them together without error, for a third of the cycles
    (docs/notes/compiling.md). The gradient is turned back in the same way.
    """
    width, d_head = 2 * cos.shape[-1], x.shape[-1]
    pairs = np.arange(width).reshape(-1, 2) if interleaved else np.arange(width).reshape(2, -1).T
    partner = np.zeros((d_head, d_head), np.float32)
    partner[pairs[:, 1], pairs[:, 0]], partner[pairs[:, 0], pairs[:, 1]] = -1, 1

    def of_each(pair: jax.Array, rest: float) -> jax.Array:  # of each feature, from numbers of each pair
        both = jnp.repeat(pair, 2, axis=-1) if interleaved else jnp.concatenate([pair, pair], axis=-1)
        return jnp.pad(both, ((0, 0), (0, 0), (0, 0), (0, d_head - width)), constant_values=rest)

    other = jax.lax.dot_general(
        x, partner.astype(x.dtype), (((3,), (0,)), ((), ())), preferred_element_type=jnp.float32
    )
    return (x.astype(jnp.float32) * of_each(cos, 1) + other * of_each(sin, 0)).astype(x.dtype)


def _turned_forward(x: jax.Array, cos: jax.Array, sin: jax.Array, interleaved: bool) -> tuple[jax.Array, Any]:
    return _turned_by_product(x, cos, sin, interleaved), (cos, sin)


def _turned_backward(interleaved: bool, saved: Any, grad: jax.Array) -> tuple[jax.Array, None, None]:
    cos, sin = saved
    return _turned_by_product(grad, cos, -sin, interleaved), None, None


_turned_by_product.defvjp(_turned_forward, _turned_backward)


def rotary_rates(rotary: cfg.Rotary, d_head: int) -> tuple[np.ndarray, float]:
    """Angles a position for each pair of features, and what the turned features are multiplied by.

    Scaling for texts longer than those trained on: ``linear`` divides all rates (arXiv 2306.15595); ``llama3`` divides
    the slow ones (Llama 3.1's reference code); ``yarn`` divides the slow ones and raises the scores (arXiv 2309.00071,
    section 3).

    Returns:
        float32 [width / 2], and a number.
    """
    width = rotary.dim or d_head
    rates = 1.0 / rotary.theta ** (np.arange(0, width, 2, dtype=np.float64) / width)
    if rotary.scaling == "none":
        return rates.astype(np.float32), 1.0
    if rotary.scaling == "linear":
        return (rates / rotary.factor).astype(np.float32), 1.0
    turns = rates * rotary.original_length / (2 * math.pi)  # of a pair over the texts trained on
    low, high = rotary.bounds
    if rotary.scaling == "llama3":
        kept = np.clip((turns - low) / (high - low), 0, 1)
        return (rates * (kept + (1 - kept) / rotary.factor)).astype(np.float32), 1.0
    first, last = (_pair_of(turns, rotary, width) for turns in (high, low))
    if rotary.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    slow = np.clip((np.arange(width // 2) - first) / max(last - first, 1e-3), 0, 1)
    return (rates * (1 - slow) + rates / rotary.factor * slow).astype(np.float32), rotary.amplitude


def _pair_of(turns: float, rotary: cfg.Rotary, width: int) -> float:
    """The pair of features, as a real number, that makes so many turns over the texts trained on."""
    return width * math.log(rotary.original_length / (turns * 2 * math.pi)) / (2 * math.log(rotary.theta))


def sinusoids(positions: jax.Array, width: int, order: str) -> jax.Array:
    """Sines and cosines of positions [B or 1, T] (arXiv 1706.03762, section 3.5): float32 [B or 1, T, width].

    Args:
        positions: int32.
        width: features, even.
        order: "halves" (all sines, then all cosines: CTRL) or "interleaved" (as the paper writes them).
    """
    rates = (1.0 / 10_000.0 ** (np.arange(0, width, 2, dtype=np.float64) / width)).astype(np.float32)
    angles = positions[..., None].astype(jnp.float32) * rates
    if order == "halves":
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(*angles.shape[:-1], width)


def relative_buckets(age: jax.Array, buckets: int, distance: int, causal: bool = True) -> jax.Array:
    """The bucket of each distance, int32, as T5 has them (arXiv 1910.10683, section 2.1).

    Args:
        age: positions from a key to its query, any shape; negative of later keys.
        buckets: half are distances 0, 1, ...; the rest grow geometrically.
        distance: from here on all distances are in the last bucket.
        causal: later keys count as at distance 0. False: half of the buckets are for them.
    """
    if not causal:
        half = buckets // 2
        return jnp.where(age < 0, half, 0) + relative_buckets(jnp.abs(age), half, distance)
    exact = buckets // 2
    age = jnp.maximum(age, 0)
    far = jnp.log(jnp.maximum(age, 1).astype(jnp.float32) / exact) / math.log(distance / exact) * (buckets - exact)
    return jnp.where(age < exact, age, jnp.minimum(exact + far.astype(jnp.int32), buckets - 1))


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """How much a head's scores fall with each position of distance (ALiBi, arXiv 2108.12409, section 3).

    A geometric sequence; for numbers that are no power of 2, that of the power below and every other one of the power
    above, as in the authors' code and BLOOM.
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (i + 1) / power) for i in range(0, 2 * (heads - power), 2)]
    return tuple(slopes)
