"""Devices arranged into the mesh that the config asks for."""

import dataclasses

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from scaling.config import schema as cfg
from scaling.config.resolve_mesh import check_stages
from scaling.parallel.sharding import MESH_AXES


def make_mesh(config: cfg.Mesh, devices: list[jax.Device] | None = None) -> Mesh:
    """Arranges devices as ``MESH_AXES``, the stages of the pipeline outermost, tensor neighbours closest.

    With ``slices`` > 1, ``stage`` takes the slices (data-centre network) first. Of more slices than stages, each
    stage has slices / stage, over which the data axis runs before it runs inside each (inter-chip links); of more
    stages than slices, each slice has stage / slices. The axes after it never leave a slice. Where devices
    carry no slice number (CPU, GPU), consecutive runs of devices stand in for slices.

    Raises:
        ValueError: the axes do not multiply up to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    data = axis_size(config, len(devices))
    stages = min(config.stage, config.slices)  # that lie on slices of their own
    outer = (stages, config.slices // stages, 1, 1, 1, 1)
    inner = (config.stage // stages, data, config.fsdp, config.expert, config.context, config.tensor)
    if config.slices == 1:
        grid = mesh_utils.create_device_mesh(inner, devices, allow_split_physical_axes=True)
    elif getattr(devices[0], "slice_index", None) is None or _one_slice(devices):
        grid = np.asarray(devices).reshape([a * b for a, b in zip(outer, inner, strict=True)])
    else:
        grid = mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
    # Automatic axes: see docs/notes/rejected.md for the trial of explicit ones.
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def one_device() -> Mesh:
    """The first device of this process as a mesh: what runs without a mesh of its own runs on it."""
    return make_mesh(cfg.Mesh(), jax.local_devices()[:1])


def axis_size(config: cfg.Mesh, device_count: int) -> int:
    """Size of the data axis inside a slice, once ``device_count`` is known.

    Raises:
        ValueError: the axes do not multiply up to ``device_count``, or stages and slices do not divide one another.
    """
    check_stages(config)
    rest = dataclasses.replace(config, data=1).devices
    data = device_count // rest if config.data == -1 else config.data
    if data * rest != device_count or data < 1:
        product = " x ".join(f"{axis}={size}" for axis, size in config.factors.items())
        raise ValueError(
            f"config.mesh: {product} does not make the {device_count} devices present; choose axes whose product is "
            f"{device_count}"
        )
    return data


def _one_slice(devices: list[jax.Device]) -> bool:
    return len({d.slice_index for d in devices}) == 1
