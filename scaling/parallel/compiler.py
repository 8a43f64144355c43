"""Options of the compiler, by platform, in one place; docs/planning.md has the measurement behind each."""

import jax

_TPU = {
    # No matrix products cut into pieces that travel round a ring: at 1.3B on v5e:4x4, fsdp=16, the gradients of the
    # weights came in pieces 128 columns wide, and the step to 1,347M estimated cycles instead of 891M.
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
    # Half of the fast memory for one instruction: 836M cycles instead of 891M in the same step (three quarters: 849M).
    "xla_tpu_scoped_vmem_limit_kib": "65536",
}
_SMALL_MEMORY = ("TPU v2", "TPU v3", "TPU v4")  # chips with less fast memory than that


def options(devices: list[jax.Device]) -> dict[str, str]:
    """For ``jax.jit(compiler_options=...)`` of a program on these devices."""
    if devices[0].platform != "tpu":
        return {}
    small = devices[0].device_kind.startswith(_SMALL_MEMORY)
    return {name: value for name, value in _TPU.items() if not (small and "vmem" in name)}
