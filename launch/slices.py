"""Names of TPU slices in each engine. Topologies and hosts are from Google's pages of each TPU and of TPUs in GKE."""

import dataclasses
import math

from scaling.catalog.chips import Chip
from scaling.plan import topology


@dataclasses.dataclass(frozen=True)
class _Kind:
    """Names of one generation of TPUs.

    Attributes:
        type: name in Cloud TPU's accelerator types; empty if Cloud TPU does not offer this generation.
        cores: cores of a chip, which accelerator types count.
        runtime: image of the TPU VMs.
        gke: value of GKE's node label.
    """

    type: str
    cores: int
    runtime: str
    gke: str


_KINDS = {
    "v4": _Kind("v4", 2, "tpu-ubuntu2204-base", "tpu-v4-podslice"),
    "v5e": _Kind("v5litepod", 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice"),
    "v5p": _Kind("v5p", 2, "v2-alpha-tpuv5", "tpu-v5p-slice"),
    "v6e": _Kind("v6e", 1, "v2-alpha-tpuv6e", "tpu-v6e-slice"),
    "v7x": _Kind("", 2, "", "tpu7x"),
}
_HOST = 4  # chips of a host; a v5e or v6e machine with 8 chips is used only as a slice of its own
_LARGE_HOSTS = {"v5e": (8, "2x4"), "v6e": (8, "2x4")}


@dataclasses.dataclass(frozen=True)
class Slices:
    """Slices of one topology.

    Attributes:
        name: of the topology, as in ``scaling plan``, such as ``v5e:4x8``.
        count: number of slices.
    """

    name: str
    count: int = 1

    @property
    def chip(self) -> Chip:
        return topology.parse(self.name)[0]

    @property
    def form(self) -> str:
        """Shape of a slice, such as ``4x8``."""
        return self.name.partition(":")[2]

    @property
    def chips_each(self) -> int:
        return math.prod(topology.parse(self.name)[1])

    @property
    def chips(self) -> int:
        """Chips of all slices together."""
        return self.count * self.chips_each

    @property
    def devices(self) -> int:
        """JAX devices of all slices."""
        return self.chips * self.chip.devices

    @property
    def chips_per_host(self) -> int:
        large, form = _LARGE_HOSTS.get(self.chip.name, (0, ""))
        return large if self.form == form else min(_HOST, self.chips_each)

    @property
    def hosts(self) -> int:
        """Hosts of one slice."""
        return self.chips_each // self.chips_per_host

    @property
    def accelerator_type(self) -> str:
        """Cloud TPU's name, such as ``v5litepod-32`` or ``v5p-16``.

        Raises:
            ValueError: Cloud TPU does not offer this generation.
        """
        kind = _KINDS[self.chip.name]
        if not kind.type:
            raise ValueError(f"--topology={self.name}: {self.chip.name} is not offered as TPU VMs; use --target=gke")
        return f"{kind.type}-{self.chips_each * kind.cores}"

    @property
    def flags(self) -> list[str]:
        """gcloud's flags for the topology; several three-dimensional topologies have the same number of chips."""
        kind = _KINDS[self.chip.name]
        if kind.type and self.form.count("x") == 2:
            return [f"--type={kind.type}", f"--topology={self.form}"]
        return [f"--accelerator-type={self.accelerator_type}"]

    @property
    def runtime_version(self) -> str:
        """The usual image of the TPU VMs."""
        return _KINDS[self.chip.name].runtime

    @property
    def gke_accelerator(self) -> str:
        """Value of the node label ``cloud.google.com/gke-tpu-accelerator``."""
        return _KINDS[self.chip.name].gke


def find(given: str | None, config: str | None, count: int) -> Slices:
    """The slices of ``--topology``, or else of the topology in the argument of the config (``1300m.py:v5e:4x8``).

    Raises:
        ValueError: no topology is given, or it does not exist.
    """
    name = given
    if name is None:
        name = (config or "").partition(":")[2]
        try:
            topology.parse(name)
        except ValueError:
            raise ValueError("needs --topology=NAME, such as v5e:4x8, or a config that names one") from None
    topology.parse(name)
    return Slices(name, count)
