"""Joining the processes of a multi-host run: TPU pods, Slurm, Kubernetes, MPI, or a plain address."""

import os

import jax

from scaling import config as cfg

# Any of these says that the launcher started several processes that should find each other.
_CLUSTER_HINTS = (
    ("SLURM_NTASKS", lambda v: int(v) > 1),
    ("OMPI_COMM_WORLD_SIZE", lambda v: int(v) > 1),
    ("TPU_WORKER_HOSTNAMES", lambda v: "," in v),
    ("MEGASCALE_NUM_SLICES", lambda v: int(v) > 1),
)


def initialize(config: cfg.Distributed, cpu_devices: int = 0) -> None:
    """Sets up the devices of this process and joins it to the others; call once, before any array.

    * ``coordinator_address`` given (with ``num_processes`` and ``process_id``): used as it is.
    * ``JAX_COORDINATOR_ADDRESS`` set (what GKE JobSet and most Kubernetes templates do): used with
      ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID`` or the Job's ``JOB_COMPLETION_INDEX``.
    * Slurm, Open MPI, Cloud TPU pods (one or several slices): JAX detects them.
    * Otherwise: one process.

    Args:
        config: where the coordinator is.
        cpu_devices: run on this many virtual CPU devices a process; 0 leaves the platform alone.

    Raises:
        ValueError: a coordinator without the number of processes or this process's id.
    """
    if cpu_devices:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", cpu_devices)
    if jax.distributed.is_initialized():
        return
    address = config.coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    if address:
        count = config.num_processes or int(os.environ.get("JAX_NUM_PROCESSES", 0))
        index = config.process_id
        if index < 0:
            index = int(os.environ.get("JAX_PROCESS_ID", os.environ.get("JOB_COMPLETION_INDEX", -1)))
        if count < 1 or not 0 <= index < count:
            raise ValueError(
                f"config.distributed.coordinator_address={address} also needs num_processes >= 1 and "
                f"process_id in [0, num_processes); got num_processes={count}, process_id={index}"
            )
        jax.distributed.initialize(address, count, index)
    elif any(name in os.environ and test(os.environ[name]) for name, test in _CLUSTER_HINTS):
        jax.distributed.initialize()
