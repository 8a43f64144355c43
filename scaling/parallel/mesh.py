"""Devices arranged into the mesh that the config asks for."""

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from scaling import config as cfg
from scaling.parallel.sharding import MESH_AXES


def make_mesh(config: cfg.Mesh, devices: list[jax.Device] | None = None) -> Mesh:
    """Arranges devices as (data, fsdp, context, tensor), tensor neighbours closest.

    With ``slices`` > 1 the data axis runs first over slices (data-centre network), then inside each
    (inter-chip links); the other axes never leave a slice. Where devices carry no slice
    number (CPU, GPU), consecutive runs of devices stand in for slices.

    Raises:
        ValueError: the axes do not multiply up to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    inner = (axis_size(config, len(devices)), config.fsdp, config.context, config.tensor)
    if config.slices == 1:
        grid = mesh_utils.create_device_mesh(inner, devices, allow_split_physical_axes=True)
    elif getattr(devices[0], "slice_index", None) is None or _one_slice(devices):
        grid = np.asarray(devices).reshape(config.slices * inner[0], *inner[1:])
    else:
        grid = mesh_utils.create_hybrid_device_mesh(
            inner, (config.slices, 1, 1, 1), devices, allow_split_physical_axes=True
        )
    # Automatic axes: see docs/design.md for the trial of explicit ones.
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def axis_size(config: cfg.Mesh, device_count: int) -> int:
    """Size of the data axis inside a slice, once ``device_count`` is known.

    Raises:
        ValueError: the axes do not multiply up to ``device_count``.
    """
    rest = config.slices * config.fsdp * config.context * config.tensor
    data = device_count // rest if config.data == -1 else config.data
    if data * rest != device_count or data < 1:
        raise ValueError(
            f"config.mesh: slices={config.slices} x data={config.data} x fsdp={config.fsdp} x context={config.context} "
            f"x tensor={config.tensor} does not make the {device_count} devices present; "
            f"choose axes whose product is {device_count}"
        )
    return data


def _one_slice(devices: list[jax.Device]) -> bool:
    return len({d.slice_index for d in devices}) == 1
