"""TPU topologies without TPUs: the compiler is part of ``jax[tpu]`` and needs no hardware."""

import importlib.util
import os
import re
from typing import Any

from scaling.catalog import chips

# Where libtpu asks the machine for TPUs, it must not; several programs may plan at once.
ENVIRONMENT = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
# By itself libtpu writes its warnings to a file only; ``plan`` looks for one of them.
_WARNINGS = {"TPU_STDERR_LOG_LEVEL": "1"}
_DIMENSIONS = {"v4": 3, "v5p": 3, "v7x": 3, "v5e": 2, "v6e": 2}
_LIBTPU_NAME = {"v7x": "tpu7x"}


def parse(name: str) -> tuple[chips.Chip, tuple[int, ...]]:
    """``v5p:4x4x8`` as a chip and the sizes of its torus.

    Raises:
        ValueError: an unknown chip, or sizes of another number of dimensions.
    """
    kind, _, sizes = name.partition(":")
    if kind not in _DIMENSIONS:
        raise ValueError(f"--topology={name}: {kind!r} is no TPU that is known; one of {', '.join(_DIMENSIONS)}")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sizes) or sizes.count("x") + 1 != _DIMENSIONS[kind]:
        example = "4x4x8" if _DIMENSIONS[kind] == 3 else "4x8"
        raise ValueError(f"--topology={name}: sizes of {kind} must be like {kind}:{example}")
    chip = chips.find(kind)
    assert chip is not None
    return chip, tuple(map(int, sizes.split("x")))


def count(name: str, slices: int) -> int:
    """JAX devices of a topology."""
    chip, sizes = parse(name)
    total = slices * chip.devices
    for size in sizes:
        total *= size
    return total


def library_name(name: str) -> str:
    """libtpu's name of a topology."""
    chip, sizes = parse(name)
    return f"{_LIBTPU_NAME.get(chip.name, chip.name)}:{'x'.join(map(str, sizes))}"


def devices(name: str, slices: int = 1) -> list[Any]:
    """Devices to compile for; nothing can run on them.

    Args:
        name: such as ``v5e:4x4``.
        slices: slices of that topology, joined by the data-centre network.

    Raises:
        ValueError: no such topology, or libtpu is not installed.
    """
    asked = library_name(name)
    os.environ.update({key: os.environ.get(key, value) for key, value in ENVIRONMENT.items()} | _WARNINGS)
    from jax.experimental import topologies

    more: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if name.startswith("v4:"):  # whose cores libtpu counts one by one unless told otherwise; JAX on a v4 does not
        more["chip_config_name"] = "megacore"
    try:
        return list(topologies.get_topology_desc(asked, platform="tpu", **more).devices)
    except Exception as error:  # libtpu raises whatever it likes
        if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
            raise ValueError("the TPU compiler is not installed; pip install 'scaling[plan]'") from None
        raise ValueError(
            f"--topology={name}: the TPU compiler refuses it ({str(error).splitlines()[0][:200]})"
        ) from None
