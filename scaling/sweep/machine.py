"""The devices or CPU cores of this machine, how many runs fit at a time, and the peak speed.

The sweep itself never claims a device: a separate process looks for devices and ends.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator

from scaling import platforms
from scaling.config import schema as cfg

_BYTES_PER_RUN = 2 << 30  # of host memory: the runtime, the compiler and a small model
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_PROBE = """
import json, os, jax
from scaling.train.throughput import peak
devices = jax.local_devices()
found = peak(devices)
cpu = devices[0].platform == "cpu"
units = sorted(os.sched_getaffinity(0)) if cpu and hasattr(os, "sched_getaffinity") else (
    list(range(os.cpu_count() or 1)) if cpu else list(range(len(devices))))
print(json.dumps([devices[0].platform, devices[0].device_kind, units, found.flops / len(units), found.source]))
"""


@dataclasses.dataclass(frozen=True)
class Machine:
    """Devices of this machine.

    Attributes:
        platform: cpu, gpu or tpu.
        kind: the vendor's name of the device.
        units: numbers of the CPU cores or devices that runs share.
        unit_flops: peak FLOP/s of one unit.
        source: where this figure comes from.
    """

    platform: str
    kind: str
    units: tuple[int, ...]
    unit_flops: float
    source: str

    def slots(self, mesh: cfg.Mesh, parallel: int) -> int:
        """The number of runs at a time.

        Args:
            mesh: of the runs; on GPUs it says how many devices one needs at least (``data=-1`` counts as 1).
            parallel: asked for; 0 = as many as there is room for.

        Raises:
            ValueError: more than the machine has room for.
        """
        if self.platform == "tpu" and parallel > 1:
            raise ValueError(f"--parallel={parallel}: one process owns all TPU chips of a host; leave it out, or 1")
        if self.platform == "cpu":
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            most, room = len(self.units), max(1, min(len(self.units), memory // _BYTES_PER_RUN))
        elif self.platform == "tpu":
            most = room = 1
        else:
            needed = mesh.devices
            most = room = len(self.units) // needed
            if not room:
                raise ValueError(f"config.mesh asks for {needed} devices, and there are {len(self.units)}")
        if parallel > most:
            raise ValueError(f"--parallel={parallel} but there is room for {most} runs at a time")
        return parallel or room

    @contextlib.contextmanager
    def restrict(self, units: list[int]) -> Iterator[dict[str, str]]:
        """Environment of a process started inside the block, so that it uses these units alone."""
        environment = dict(os.environ)
        if self.platform != "cpu":
            if self.platform == "gpu":
                names = os.environ.get(_VISIBLE, "").split(",")
                known = names if len(names) == len(self.units) else [str(unit) for unit in self.units]
                environment[_VISIBLE] = ",".join(known[unit] for unit in units)
            yield environment
            return
        if not hasattr(os, "sched_setaffinity"):
            yield environment
            return
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, units)  # inherited by the child
        try:
            yield environment
        finally:
            os.sched_setaffinity(0, before)


def probe(cpu_devices: int = 0) -> Machine:
    """Finds the devices of this machine, in a separate process.

    Args:
        cpu_devices: of ``config.mesh``: runs that ask for virtual CPU devices run on the CPU.

    Raises:
        ValueError: JAX finds no device; the message contains JAX's own.
    """
    environment = dict(os.environ, **({"JAX_PLATFORMS": "cpu"} if cpu_devices else {}))
    found = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, env=environment)
    if found.returncode:
        said = (found.stderr.strip().splitlines() or [""])[-1]
        raise platforms.unusable(said.removeprefix("AssertionError"))  # which JAX raises without a message
    platform, kind, units, unit_flops, source = json.loads(found.stdout.splitlines()[-1])
    return Machine(platform, kind, tuple(units), unit_flops, source)
