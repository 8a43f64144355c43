"""Model FLOP/s utilisation: what the devices could do, and the formula that relates a step to it."""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Dense peak FLOP/s of one device in bfloat16, from the vendors' data sheets; the first match in
# device_kind counts, so the longer names come first.
BF16_PEAK = (
    ("TPU v7", 2307e12),
    ("TPU7x", 2307e12),
    ("TPU v6 lite", 918e12),
    ("TPU v6e", 918e12),
    ("TPU v5p", 459e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v4", 275e12),
    ("TPU v3", 61.5e12),  # a JAX device is one of the chip's two cores
    ("TPU v2", 22.5e12),
    ("B200", 2250e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("V100", 125e12),
)

FORMULA = (
    "MFU = FLOPs of one token (forward + backward, causal attention counted half, no recomputation) "
    "* tokens/s / (devices * peak FLOP/s of a device)"
)


class Peak(NamedTuple):
    flops: float  # FLOP/s of all devices together
    source: str


def peak(devices: list[jax.Device]) -> Peak:
    """Peak FLOP/s of the devices: data sheet where the kind is known, else measured by a matrix product.

    Virtual CPU devices share one machine, so there the measurement is of the whole machine.
    """
    kind = devices[0].device_kind
    if known := data_sheet(kind, len(devices)):
        return known
    size = 2048
    measured = _matmul_flops(size)
    source = f"measured: float32 {size}x{size} matrix product, {measured / 1e9:.0f} GFLOP/s"
    if devices[0].platform == "cpu":
        return Peak(measured, f"{source} on this machine")
    return Peak(measured * len(devices), f"{source} x {len(devices)} {kind}")


def data_sheet(kind: str, count: int) -> Peak | None:
    """Peak FLOP/s of ``count`` devices of a kind, such as "TPU v5p"; None if the kind is not in the table."""
    for name, flops in BF16_PEAK:
        if name.lower() in kind.lower():
            return Peak(flops * count, f"data sheet, bfloat16 dense: {flops / 1e12:g} TFLOP/s x {count} {kind}")
    return None


def _matmul_flops(size: int) -> float:
    """Best of several float32 products on one device, FLOP/s."""
    a = jnp.ones((size, size), jnp.float32)
    multiply = jax.jit(jnp.matmul)
    multiply(a, a).block_until_ready()
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        multiply(a, a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
