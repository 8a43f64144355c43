"""Options of the compiler, by kind of device."""

import dataclasses

import pytest

from scaling.parallel import compiler
from tests import tiny


@dataclasses.dataclass(frozen=True)
class Device:
    device_kind: str
    platform: str = "tpu"


@pytest.mark.parametrize(
    ("kind", "memory", "offloaded"),
    [("TPU v4", False, 0), ("TPU v5 lite", True, 0), ("TPU v5", True, 4), ("TPU v6 lite", True, 4)],
)
def test_each_generation_has_its_own(kind, memory, offloaded):
    found = compiler.options([Device(kind)])
    assert found["xla_jf_spmd_threshold_for_windowed_einsum_mib"] == "1000000"
    assert ("xla_tpu_scoped_vmem_limit_kib" in found) == memory
    assert sum("sparse_core_collective_offload" in name for name in found) == offloaded


def test_other_platforms_have_none():
    assert compiler.options([Device("NVIDIA H100", "gpu")]) == {}


def test_wide_layers_have_more_fast_memory_on_v6e():
    limit = "xla_tpu_scoped_vmem_limit_kib"
    narrow, wide = (tiny.network(d_model=width, num_heads=2) for width in (4094, 4096))
    for kind, less, more in (("TPU v6 lite", "65536", "98304"), ("TPU v5", "65536", "65536"), ("TPU v4", None, None)):
        found = [compiler.options([Device(kind)], network).get(limit) for network in (None, narrow, wide)]
        assert found == [less, less, more]
