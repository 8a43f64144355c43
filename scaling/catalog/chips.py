"""Figures of accelerators from the vendors' data sheets. Nothing here needs JAX."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Host:
    """A chip's part of the computer that it is plugged into.

    Attributes:
        rate: bytes/s between the chip and the host's memory, in each direction.
        memory: bytes of the host for each of its chips; 0 = not published.
    """

    rate: float
    memory: float = 0.0


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
        name: the name that users write.
        flops: dense peak in bfloat16, FLOP/s.
        hbm: bytes of memory.
        hbm_bandwidth: of the memory, bytes/s.
        link: bytes/s that a chip can send to its neighbours over all its links together, in one direction.
        clock: of a TPU's matrix units, Hz: the peak divided by the FLOPs that the units do in a cycle; 0 for GPUs.
        kinds: parts of JAX's ``device_kind`` by which the chip is recognised.
        devices: number of JAX devices in a chip.
        between: bytes/s that a chip can send to other slices over the data-centre network; 0 = unknown.
        host: the way to the host; None = nothing is published.
    """

    name: str
    flops: float
    hbm: float
    hbm_bandwidth: float
    link: float
    clock: float
    kinds: tuple[str, ...]
    devices: int = 1
    between: float = 0.0
    host: Host | None = None


GIB = 2**30
# PCIe by "How to Scale Your Model" (jax-ml.github.io/scaling-book/tpus): 16 GB/s a TPU, 32 on v6e, for v4 "each way".
# Memory by Google's pages of each TPU: 192 GB a VM of 4 chips of v5e, 448 GB a VM of 4 of v5p, 1,536 GiB a host of 8 of
# v6e. The book does not name v7x, and the servers of GPUs differ.
_V6E, _V5P, _V5E, _V4 = Host(32e9, 192 * GIB), Host(16e9, 112e9), Host(16e9, 48e9), Host(16e9)
# The first chip with a kind that is part of a device_kind is used, so longer kinds come first. A link of a TPU sends
# 45 GB/s on v4 and v5e and 90 GB/s on later TPUs; v5e and v6e have 4 links, the others 6. Of NVLink half the figure of
# both directions is used, and PCIe where there is no NVLink. Between slices, by Google's pages of each TPU: 100 Gbit/s
# for a chip of v7x and v6e, 50 for v5p, 6.4 Tbit/s for a v5e pod of 256. For v4: what the training of PaLM reached, 81
# Tbit/s over 6,144 chips (arXiv 2204.02311, section 4).
CHIPS = (
    Chip("v7x", 2307e12, 192 * GIB, 7.37e12, 540e9, 2.2e9, ("TPU v7", "TPU7x"), devices=2, between=12.5e9),
    Chip("v6e", 918e12, 32 * GIB, 1.64e12, 360e9, 1.75e9, ("TPU v6 lite", "TPU v6e"), between=12.5e9, host=_V6E),
    Chip("v5p", 459e12, 95 * GIB, 2.765e12, 540e9, 1.75e9, ("TPU v5p",), between=6.25e9, host=_V5P),
    Chip("v5e", 197e12, 16 * GIB, 8.19e11, 180e9, 1.5e9, ("TPU v5 lite", "TPU v5e"), between=3.125e9, host=_V5E),
    Chip("v5p", 459e12, 95 * GIB, 2.765e12, 540e9, 1.75e9, ("TPU v5",), between=6.25e9, host=_V5P),
    Chip("v4", 275e12, 32 * GIB, 1.228e12, 270e9, 1.05e9, ("TPU v4",), between=1.65e9, host=_V4),
    Chip("v3", 123e12, 32 * GIB, 9e11, 140e9, 0.94e9, ("TPU v3",), devices=2),
    Chip("v2", 45e12, 16 * GIB, 7e11, 100e9, 0.7e9, ("TPU v2",), devices=2),
    Chip("B200", 2250e12, 180 * GIB, 8.0e12, 900e9, 0, ("B200",)),
    Chip("H200", 989e12, 141 * GIB, 4.8e12, 450e9, 0, ("H200",)),
    Chip("H100 PCIe", 756e12, 80 * GIB, 2.0e12, 64e9, 0, ("H100 PCIe",)),
    Chip("H100", 989e12, 80 * GIB, 3.35e12, 450e9, 0, ("H100",)),
    Chip("A100", 312e12, 80 * GIB, 2.039e12, 300e9, 0, ("A100",)),
    Chip("L40S", 362e12, 48 * GIB, 8.64e11, 32e9, 0, ("L40S",)),
    Chip("L4", 121e12, 24 * GIB, 3e11, 32e9, 0, ("L4",)),
    Chip("V100", 125e12, 32 * GIB, 9e11, 150e9, 0, ("V100",)),
)


def find(kind: str) -> Chip | None:
    """The chip with this name or with this ``device_kind`` of JAX; None if it is not in the table."""
    for chip in CHIPS:
        if kind.lower() == chip.name.lower() or any(part.lower() in kind.lower() for part in chip.kinds):
            return chip
    return None
