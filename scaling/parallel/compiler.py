"""Options of the compiler, by platform, in one place; docs/planning.md has the measurement behind each."""

import jax

from scaling.config import remat
from scaling.config import schema as cfg
from scaling.parallel.sharding import current_mesh

_TPU = {
    # No matrix products cut into pieces that travel round a ring: at 1.3B on v5e:4x4, fsdp=16, the gradients of the
    # weights came in pieces 128 columns wide, and the step to 1,347M estimated cycles instead of 891M.
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
    # Half of the fast memory for one instruction: 836M cycles instead of 891M in the same step (three quarters: 849M).
    "xla_tpu_scoped_vmem_limit_kib": "65536",
}
# Three quarters of it where layers are wide, on v6e: 13B takes 947M cycles instead of 1,014M, LLaMA-2-7B 997M instead
# of 1,050M, but 1.3B 249M instead of 242M.
_WIDE, _FOR_WIDE = 4096, {"xla_tpu_scoped_vmem_limit_kib": "98304"}
# Collectives run on the sparse cores, beside the matrix units. By itself the compiler runs all of them one after the
# other with the products: 27.0 of 167.9 predicted ms in 1.3B on v6e:4x4, fsdp=16, against 12.2 of 155.5. The sums of a
# layer's gradients are not combined into one at its end, but begin during its backward pass: 3.6 of 147.1 ms. By itself
# the compiler makes no reduce-scatter over all chips of a square slice, but all-reduces, which send twice as much; with
# ``nd`` it does.
_OFFLOADED = {
    f"xla_tpu_enable_sparse_core_collective_offload_{kind}": "true"
    for kind in ("all_gather", "all_reduce", "reduce_scatter", "nd_reduce_scatter")
} | {"xla_jf_crs_combiner_threshold_in_bytes": "40000000"}
# Copies to the host begin where their array is made, and those back where the layer that reads them begins. By itself
# the compiler begins both a layer apart from that, and each must end where the next array of its kind is made: of 6.7B
# on v5e:8x8 two thirds of the way are not hidden then (docs/notes/compiling.md).
_TO_HOST = {"xla_tpu_pipeline_memory_host_transfers": "false"}
_V6E = ("TPU v6 lite", "TPU v6e")
_SPARSE_CORES = ("TPU v5", "TPU v5p", *_V6E)  # chips whose sparse cores may send; v5e has none
_SMALL_MEMORY = ("TPU v2", "TPU v3", "TPU v4")  # chips with less fast memory than that


def fast_memory() -> int:
    """Bytes that one kernel may use of the fast memory, on the devices of the computation that is traced."""
    device = current_mesh().abstract_device
    return (12 if str(device.device_kind).startswith(_SMALL_MEMORY) else 64) << 20


def options(devices: list[jax.Device], network: cfg.Network | None = None) -> dict[str, str]:
    """For ``jax.jit(compiler_options=...)`` of a program on these devices, which trains or runs this network."""
    if devices[0].platform != "tpu":
        return {}
    kind = devices[0].device_kind
    found = {name: value for name, value in _TPU.items() if not (kind.startswith(_SMALL_MEMORY) and "vmem" in name)}
    if kind in _SPARSE_CORES:
        found |= _OFFLOADED
    if network and kind in _V6E and network.model.d_model >= _WIDE:
        found |= _FOR_WIDE
    if network and remat.uses_host(network.compute.remat):
        found |= _TO_HOST
    return found
