"""TPU slices as each engine names them. Forms and hosts by Google's pages of each TPU and of TPUs in GKE."""

import dataclasses
import math

from scaling.catalog.chips import Chip
from scaling.plan import topology


@dataclasses.dataclass(frozen=True)
class _Kind:
    """Names of one generation.

    ``type``: of Cloud TPU (accelerator types count ``cores`` a chip); ``runtime``: image of the TPU VMs; empty where
    Cloud TPU does not offer it. ``gke``: node label.
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
_HOST = 4  # chips of a host; the 8 of one v5e or v6e machine make a slice of their own
_LARGE_HOSTS = {"v5e": (8, "2x4"), "v6e": (8, "2x4")}


@dataclasses.dataclass(frozen=True)
class Slices:
    """Slices of one form.

    Attributes:
        name: as in ``scaling plan``, such as ``v5e:4x8``.
        count: how many.
    """

    name: str
    count: int = 1

    @property
    def chip(self) -> Chip:
        return topology.parse(self.name)[0]

    @property
    def form(self) -> str:
        """Sizes of the torus, ``4x8``."""
        return self.name.partition(":")[2]

    @property
    def chips_each(self) -> int:
        return math.prod(topology.parse(self.name)[1])

    @property
    def chips(self) -> int:
        """Of all slices."""
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
        """Of one slice."""
        return self.chips_each // self.chips_per_host

    @property
    def accelerator_type(self) -> str:
        """Cloud TPU's name, such as ``v5litepod-32`` or ``v5p-16``.

        Raises:
            ValueError: Cloud TPU has none of this kind.
        """
        kind = _KINDS[self.chip.name]
        if not kind.type:
            raise ValueError(f"--topology={self.name}: {self.chip.name} is not offered as TPU VMs; use --target=gke")
        return f"{kind.type}-{self.chips_each * kind.cores}"

    @property
    def flags(self) -> list[str]:
        """What tells gcloud the form: of the three-dimensional kinds several have the same number of chips."""
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
    """The slices of ``--topology``, else those that the config's argument names (``1300m.py:v5e:4x8``).

    Raises:
        ValueError: neither, or no such topology.
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
