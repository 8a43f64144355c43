"""Parameters with logical axes, products, biases, dropout.

Shape legend of the package: B batch, T time, S time of keys, D model, H heads, K head width,
F MLP width, V padded vocabulary, L layers.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from scaling.parallel.sharding import Axes, current_mesh, features_apart, gathered, platform

KINDS = ("embedding", "position", "matrix", "gain", "bias")


class Parameter(nnx.Param):
    """An ``nnx.Param`` with ``axes`` (logical names, for sharding) and ``kind`` (for the optimizer)."""


def normal(key: jax.Array, shape: tuple[int, ...], std: float, axes: Axes, kind: str = "matrix") -> Parameter:
    """A parameter drawn from a normal distribution of this standard deviation, float32."""
    assert len(axes) == len(shape) and kind in KINDS
    return Parameter(std * jax.random.normal(key, shape, jnp.float32), axes=axes, kind=kind)


def normal_parts(
    key: jax.Array, shape: tuple[int, tuple[int, ...], int], std: float, axes: Sequence[Axes]
) -> tuple[Parameter, ...]:
    """Several matrices [D, H, K] that differ in H and axes only, drawn as one array; arguments as of ``normal``."""
    width, heads, features = shape
    drawn = std * jax.random.normal(key, (width, sum(heads), features), jnp.float32)
    bounds = list(itertools.accumulate(heads))[:-1]
    parts = jnp.split(drawn, bounds, axis=1)
    return tuple(Parameter(part, axes=its_axes, kind="matrix") for part, its_axes in zip(parts, axes, strict=True))


def constant(value: float, shape: tuple[int, ...], axes: Axes, kind: str) -> Parameter:
    """A parameter that starts at one value everywhere, float32."""
    assert len(axes) == len(shape) and kind in KINDS
    return Parameter(jnp.full(shape, value, jnp.float32), axes=axes, kind=kind)


def use(parameter: Parameter, dtype: jnp.dtype) -> jax.Array:
    """A parameter as it enters a product: cast first, so that FSDP gathers the narrow type."""
    return gathered(parameter[...].astype(dtype), parameter.axes)


def product(x: jax.Array, w: jax.Array, merged: int = 1) -> jax.Array:
    """The last dimensions of x, ``merged`` of them, against the first of w, which has a row for each of their elements.

    On one CPU, as a product of two matrices: from more dimensions XLA makes the gradient of w out of operands that it
    transposes element by element, an eighth of the time of an MLP's forward and backward pass
    (docs/notes/cpu_training.md).
    Elsewhere the dimensions, which may be sharded, stay as they are.
    """
    if not (platform() == "cpu" and current_mesh().size == 1):
        return jnp.tensordot(x, w.reshape(*x.shape[-merged:], *w.shape[1:]), merged)
    inner = w.shape[0]
    return (x.reshape(-1, inner) @ w.reshape(inner, -1)).reshape(*x.shape[:-merged], *w.shape[1:])


def add_bias(x: jax.Array, bias: Parameter, *new_axes: int) -> jax.Array:
    """x plus a bias (given new axes to line it up), added in float32.

    Not for the sum's sake but for the gradient's: a bias is shared by all tokens, and adding up thousands of bfloat16
    gradients in bfloat16 loses half of them.
    """
    wide = jnp.expand_dims(use(bias, jnp.dtype(jnp.float32)), new_axes)
    if x.dtype == jnp.bfloat16 and x.ndim == 4 and wide.ndim == 3 and wide.shape[1] == 1:
        return _add_bias_of_heads(x, wide)
    return (x.astype(jnp.float32) + wide).astype(x.dtype)


@jax.custom_vjp
def _add_bias_of_heads(x: jax.Array, bias: jax.Array) -> jax.Array:
    """x [B, H, T, K] plus a bias [H, 1, K], whose gradient is a product with ones.

    The sum is the same, because bfloat16 numbers times one are added in float32. The TPU's compiler estimates 11,000
    cycles for the product and 235,000 for the sum of 8,192 tokens of 1.3B (docs/notes/compiling.md).
    """
    return (x.astype(jnp.float32) + bias).astype(x.dtype)


def _add_bias_of_heads_forward(x: jax.Array, bias: jax.Array) -> tuple[jax.Array, None]:
    return _add_bias_of_heads(x, bias), None


def _add_bias_of_heads_backward(_: None, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    ones = jnp.ones((*grad.shape[:2], 8, grad.shape[2]), grad.dtype)  # of one row, the compiler would make a sum again
    each = jax.lax.dot_general(ones, grad, (((3,), (2,)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32)
    return grad, each[:, :, :1].sum(0)


_add_bias_of_heads.defvjp(_add_bias_of_heads_forward, _add_bias_of_heads_backward)


@jax.custom_vjp
def lookup(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of a table [V, D] by ids [B, T]: [B, T, D]; the gradients of a row are added up in float32.

    Frequent tokens get thousands of gradients a step; a bfloat16 sum of them stops growing early.
    """
    return table[ids]


def _lookup_forward(table: jax.Array, ids: jax.Array) -> tuple[jax.Array, Any]:
    return table[ids], (ids, table)


def _lookup_backward(saved: Any, grad: jax.Array) -> tuple[jax.Array, None]:
    ids, table = saved
    total = jnp.zeros(table.shape, jnp.float32).at[ids].add(features_apart(grad).astype(jnp.float32))
    return total.astype(table.dtype), None


lookup.defvjp(_lookup_forward, _lookup_backward)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Inverted dropout; without a key (evaluation) or rate, the identity."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)
