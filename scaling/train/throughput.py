"""Model FLOP/s utilisation: what the devices could do, and the formula that relates a step to it."""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scaling.catalog import chips

FORMULA = (
    "MFU = FLOPs of one token (forward + backward, causal attention counted half, no recomputation) "
    "* tokens/s / (devices * peak FLOP/s of a device)"
)


class Peak(NamedTuple):
    flops: float  # FLOP/s of all devices together
    source: str


def mfu(peak: Peak) -> dict[str, str | float]:
    """How MFU is computed, for whoever reads the numbers later."""
    return {"formula": FORMULA, "peak_flops": peak.flops, "peak_source": peak.source}


def peak(devices: list[jax.Device]) -> Peak:
    """Peak FLOP/s of the devices: data sheet where the kind is known, else measured by a matrix product.

    Virtual CPU devices share one machine, so there the measurement is of the whole machine.
    """
    kind = devices[0].device_kind
    if known := data_sheet(kind, len(devices)):
        return known
    size = 1024 if devices[0].platform == "cpu" else 2048  # on 2 cores 2048 took seconds of each start, and gave less
    measured = _matmul_flops(size)
    source = f"measured: float32 {size}x{size} matrix product, {measured / 1e9:.0f} GFLOP/s"
    if devices[0].platform == "cpu":
        return Peak(measured, f"{source} on this machine")
    return Peak(measured * len(devices), f"{source} x {len(devices)} {kind}")


def data_sheet(kind: str, count: int) -> Peak | None:
    """Peak FLOP/s of ``count`` devices of a kind, such as "TPU v5p"; None if the kind is not in the table."""
    chip = chips.find(kind)
    if chip is None:
        return None
    flops = chip.flops / chip.devices
    return Peak(flops * count, f"data sheet, bfloat16 dense: {flops / 1e12:g} TFLOP/s x {count} {kind}")


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
