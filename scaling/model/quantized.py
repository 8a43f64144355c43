"""Products of activations with parameters: in the compute dtype, or in 8 bits by qwix (``compute.quantization``).

For decoding, parameters may be in 8 bits while activations are not (``rounded``).

In 8 bits, the forward product and the gradient of the activations take narrow operands, scaled by the absolute maximum
of each token and of each output channel (the scheme of AQT and MaxText; arXiv 2105.03536). The gradient of the weights,
whose sum runs over all tokens of a batch, stays in the compute dtype. Sums are int32 or float32.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from scaling.model.layers import Parameter, product
from scaling.model.rounded import factor, scaled, used
from scaling.parallel.sharding import Axes, constrain, gathered, with_gradient_layout

# Of weights and activations; of gradients, which need a wider range.
TYPES = {"int8": (jnp.int8, jnp.int8), "fp8": (jnp.float8_e4m3fn, jnp.float8_e5m2)}


def check(quantization: str) -> None:
    """Says early, when a model is made, that something is missing.

    Raises:
        ValueError: qwix is not installed.
    """
    if quantization != "none":
        try:
            import qwix  # noqa: F401
        except ImportError:
            raise ValueError(
                f"config.compute.quantization={quantization!r} needs qwix; pip install 'scaling[quant]', or set 'none'"
            ) from None


def project(x: jax.Array, parameter: Parameter, quantization: str, merged: int = 1) -> jax.Array:
    """The last dimensions of x against the first of a parameter; in x's dtype.

    Args:
        x: activations, in the compute dtype.
        parameter: float32; while decoding in the compute dtype, or rounded.
        quantization: none, int8 or fp8.
        merged: how many dimensions of x the first of the parameter stands for.
    """
    if quantization == "none":
        w = used(parameter[...], parameter.axes, (0,), x.dtype)
        return scaled(product(x, factor(w, x.dtype), merged), w)
    return _narrow(x.reshape(*x.shape[:-merged], -1), parameter[...], parameter.axes, quantization)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _narrow(x: jax.Array, w: jax.Array, axes: Axes, quantization: str) -> jax.Array:
    import qwix

    narrow = _quantized(x, TYPES[quantization][0], range(x.ndim - 1))
    weights = _weights(w, axes, quantization)
    return qwix.dot_general(narrow, weights, (((x.ndim - 1,), (0,)), ((), ()))).astype(x.dtype)


def _forward(x: jax.Array, w: jax.Array, axes: Axes, quantization: str) -> tuple[jax.Array, Any]:
    # Of the weights, their shards are kept and not what was gathered.
    return _narrow(x, w, axes, quantization), (x, w)


def _backward(axes: Axes, quantization: str, saved: Any, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    import qwix

    x, w = saved
    tokens = tuple(range(x.ndim - 1))
    weights = _weights(w, axes, quantization)
    # The sum now runs over the output channels: their scales go to the gradient, and the weights serve as they are.
    scaled = grad.astype(jnp.float32) * weights.scale.reshape(w.shape[1:])
    narrow = _quantized(scaled, TYPES[quantization][1], tokens)
    dimensions = (tuple(range(len(tokens), grad.ndim)), tuple(range(1, w.ndim)))
    grad_x = qwix.dot_general(narrow, weights.qvalue, (dimensions, ((), ())))
    grad_w = with_gradient_layout(jnp.tensordot(x, grad, (tokens, tokens)), axes)
    return grad_x.astype(x.dtype), grad_w.astype(w.dtype)


_narrow.defvjp(_forward, _backward)


def _weights(w: jax.Array, axes: Axes, quantization: str) -> Any:
    """Weights in 8 bits, made where they are stored: FSDP gathers bytes."""
    narrow = _quantized(w, TYPES[quantization][0], range(1, w.ndim))
    return dataclasses.replace(narrow, qvalue=gathered(narrow.qvalue, axes), scale=constrain(narrow.scale, *axes))


def _quantized(x: jax.Array, kind: Any, channels: Any) -> Any:
    """x in 8 bits, with a float32 scale for each index of the dimensions ``channels``."""
    import qwix

    return qwix.quantize(x.astype(jnp.float32), kind, channelwise_axes=tuple(channels))
