"""Weights and caches in 8 bits for decoding (``compute.decode_int8``): what each token must read is half as long.

Numbers are integers from -127 to 127 times one float32 scale for each output channel of a matrix, or for each token and
head of a cache: the absolute maximum is 127 (symmetric, without zero point, round to nearest; arXiv 2208.07339, section
2.1). Nothing but these numbers is narrow: products take activations in the compute dtype, into which integers of 8
bits convert exactly, and the scale multiplies their results. So no wide copy of the numbers is needed.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from scaling.parallel.sharding import Axes, gathered

_LARGEST = 127


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rounded:
    """An array in 8 bits; or of such an array anything that has a part for each: its logical axes, its shardings.

    Attributes:
        values: int8.
        scale: float32, in the shape of ``values`` without the dimensions that have a scale in common.
    """

    values: Any
    scale: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the numbers."""
        return tuple(self.values.shape)

    def __getitem__(self, index: Any) -> "Rounded":
        """Itself: ``parameter[...]`` is how the value of a parameter is read."""
        assert index is Ellipsis, index
        return self


Kept = jax.Array | Rounded  # what decoding reads for each token: weights, keys, values


def rounded(x: jax.Array, summed: tuple[int, ...]) -> Rounded:
    """An array in 8 bits, with a scale for each index of the dimensions that are not ``summed``. Zeros stay zeros."""
    x = x.astype(jnp.float32)
    scale = jnp.abs(x).max(summed) / _LARGEST
    values = jnp.round(x / _beside(jnp.where(scale > 0, scale, 1), summed)).astype(jnp.int8)
    return Rounded(values, scale)


def rounded_axes(axes: Axes, summed: tuple[int, ...]) -> Rounded:
    """Logical axes of ``rounded`` of an array that has these."""
    return Rounded(axes, tuple(name for i, name in enumerate(axes) if i not in summed))


def wide(x: Rounded, summed: tuple[int, ...], dtype: Any) -> jax.Array:
    """The numbers that 8 bits stand for, whole."""
    return (x.values.astype(jnp.float32) * _beside(x.scale, summed)).astype(dtype)


def used(value: Any, axes: Axes, summed: tuple[int, ...], dtype: Any) -> Kept:
    """Weights as they enter a product, laid out for use: in ``dtype``, or in 8 bits, of which bytes are gathered."""
    if not isinstance(value, Rounded):
        return gathered(value.astype(dtype), axes)
    laid_out = rounded_axes(axes, summed)
    return Rounded(gathered(value.values, axes), gathered(value.scale, laid_out.scale))


def factor(x: Kept, dtype: Any) -> jax.Array:
    """What a product takes of weights, keys or values: of 8 bits the integers, which ``dtype`` holds exactly."""
    return x.values.astype(dtype) if isinstance(x, Rounded) else x


def scaled(result: jax.Array, x: Kept, *new_axes: int) -> jax.Array:
    """A product with ``factor(x)``, or the other factor of it, times the scale, given new axes to line it up."""
    if not isinstance(x, Rounded):
        return result
    return (result.astype(jnp.float32) * jnp.expand_dims(x.scale, new_axes)).astype(result.dtype)


def _beside(scale: jax.Array, summed: tuple[int, ...]) -> jax.Array:
    return jnp.expand_dims(scale, summed)
