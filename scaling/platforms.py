"""Chooses the platforms that JAX looks for, and words the error if one is missing. Importing this imports no JAX."""

import importlib.util
import os
import traceback
from collections.abc import MutableMapping
from pathlib import Path

VARIABLE = "JAX_PLATFORMS"
_NVIDIA = ("nvidia0", "nvidiactl", "dxg")  # in /dev; the last is the device in Windows Subsystem for Linux
_CUDA = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13", "jax_cuda12_plugin", "jax_cuda13_plugin")
_ROCM = ("jax_plugins.xla_rocm7", "jax_plugins.xla_rocm60", "jax_rocm7_plugin", "jax_rocm60_plugin")


def has_libtpu() -> bool:
    """Whether libtpu, the TPU's library and compiler, is installed."""
    return "TPU_LIBRARY_PATH" in os.environ or importlib.util.find_spec("libtpu") is not None


def has_tpu(devices: Path = Path("/dev")) -> bool:
    """Whether this machine has TPU chips."""
    return any(devices.glob("accel[0-9]*")) or any((devices / "vfio").glob("[0-9]*"))


def leave_out_tpu(environment: MutableMapping[str, str], devices: Path = Path("/dev")) -> None:
    """Tells JAX not to look for a TPU if only its compiler is installed; libtpu prints errors if there is no TPU.

    Args:
        environment: of this process, before JAX is imported; a ``JAX_PLATFORMS`` in it is kept.
        devices: the folder in which the system lists its devices.
    """
    if environment.get(VARIABLE) or not has_libtpu() or has_tpu(devices):
        return
    found = ["cuda"] if any((devices / name).exists() for name in _NVIDIA) and _installed(_CUDA) else []
    found += ["rocm"] if (devices / "kfd").exists() and _installed(_ROCM) else []
    environment[VARIABLE] = ",".join([*found, "cpu"])


def refusal(error: BaseException) -> ValueError | None:
    """An error of one sentence for JAX's error about a missing platform; None for other errors."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, RuntimeError | AssertionError) and any("xla_bridge" in frame.filename for frame in frames):
        return unusable(str(error))
    return None


def unusable(said: str) -> ValueError:
    """The error that no device can be used; ``said`` is JAX's message, or empty."""
    because = f" ({' '.join(said.split())[:300]})" if said else ""
    if asked := os.environ.get(VARIABLE, ""):
        return ValueError(f"{VARIABLE}={asked}: JAX finds no such device here{because}; unset it, or use cpu")
    return ValueError(f"JAX cannot use the devices of this machine{because}; set {VARIABLE}=cpu to use the CPU")


def only_cpu() -> None:
    """Keeps JAX from claiming an accelerator that a training run may need."""
    import jax

    jax.config.update("jax_platforms", "cpu")


def _installed(names: tuple[str, ...]) -> bool:
    def found(name: str) -> bool:
        try:
            return importlib.util.find_spec(name) is not None
        except ImportError:  # the package that would contain it is not installed
            return False

    return any(map(found, names))
