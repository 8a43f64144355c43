"""Options of the compiler, by platform, in one place; docs/benchmarks.md has the measurement behind each."""

import jax

_TPU = {
    # No matrix products cut into pieces that travel round a ring: at 1.3B on v5e:4x4, fsdp=16, the gradients of the
    # weights came in pieces 128 columns wide, and the step to 1,347M estimated cycles instead of 891M.
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
}


def options(devices: list[jax.Device]) -> dict[str, str]:
    """For ``jax.jit(compiler_options=...)`` of a program on these devices."""
    return _TPU if devices[0].platform == "tpu" else {}
