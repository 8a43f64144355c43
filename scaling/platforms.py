"""Which platforms JAX is to look for, and what to say where one is not there. Imports no JAX by itself."""

import importlib.util
import os
import traceback
from collections.abc import MutableMapping
from pathlib import Path

VARIABLE = "JAX_PLATFORMS"
_NVIDIA = ("nvidia0", "nvidiactl", "dxg")  # in /dev; the last is that of Windows' Linux
_CUDA = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13", "jax_cuda12_plugin", "jax_cuda13_plugin")
_ROCM = ("jax_plugins.xla_rocm7", "jax_plugins.xla_rocm60", "jax_rocm7_plugin", "jax_rocm60_plugin")


def has_libtpu() -> bool:
    """Whether the TPU's library is installed, which is also its compiler."""
    return "TPU_LIBRARY_PATH" in os.environ or importlib.util.find_spec("libtpu") is not None


def has_tpu(devices: Path = Path("/dev")) -> bool:
    """Whether this machine has TPU chips."""
    return any(devices.glob("accel[0-9]*")) or any((devices / "vfio").glob("[0-9]*"))


def leave_out_tpu(environment: MutableMapping[str, str], devices: Path = Path("/dev")) -> None:
    """Tells JAX not to look for a TPU where only the compiler is installed: libtpu prints errors when it finds none.

    Args:
        environment: of this process, before JAX is imported; a ``JAX_PLATFORMS`` that is there stays.
        devices: where the system lists its devices.
    """
    if environment.get(VARIABLE) or not has_libtpu() or has_tpu(devices):
        return
    found = ["cuda"] if any((devices / name).exists() for name in _NVIDIA) and _installed(_CUDA) else []
    found += ["rocm"] if (devices / "kfd").exists() and _installed(_ROCM) else []
    environment[VARIABLE] = ",".join([*found, "cpu"])


def refusal(error: BaseException) -> ValueError | None:
    """One sentence for JAX's error where a platform that was asked for is not there; None for other errors."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, RuntimeError | AssertionError) and any("xla_bridge" in frame.filename for frame in frames):
        return unusable(str(error))
    return None


def unusable(said: str) -> ValueError:
    """The error that no device can be used; ``said`` are JAX's words, where it had any."""
    because = f" ({' '.join(said.split())[:300]})" if said else ""
    if asked := os.environ.get(VARIABLE, ""):
        return ValueError(f"{VARIABLE}={asked}: JAX finds no such device here{because}; unset it, or use cpu")
    return ValueError(f"JAX cannot use the devices of this machine{because}; {VARIABLE}=cpu does without")


def only_cpu() -> None:
    """Keeps JAX from claiming an accelerator that a training run may need."""
    import jax

    jax.config.update("jax_platforms", "cpu")


def _installed(names: tuple[str, ...]) -> bool:
    def found(name: str) -> bool:
        try:
            return importlib.util.find_spec(name) is not None
        except ImportError:  # of the package that it would lie in
            return False

    return any(map(found, names))
