"""What ``compute.remat=auto`` is for a training on the devices that are here."""

import dataclasses
import logging

import jax
from etils import epath

from scaling.catalog import chips
from scaling.config import schema as cfg
from scaling.config.refusal import refused
from scaling.config.remat import AUTO
from scaling.parallel import distributed
from scaling.runs.config_json import read_config_json

log = logging.getLogger("scaling")


def settled(config: cfg.Config, directory: epath.Path, verb: str) -> cfg.Config:
    """The config with a policy in the place of ``auto``; the choice is logged.

    A run that is resumed on the same mesh with the same microbatch goes on with its policy. Else it is chosen by the
    estimate from shapes and the memory of the device: ``none`` on CPUs.

    Args:
        config: resolved.
        directory: the run directory.
        verb: that trains it.

    Raises:
        ValueError: the figures of the device are not known, or the verb holds more than the estimate knows of.
    """
    if config.compute.remat != AUTO:
        return config
    from scaling.plan.recompute import with_remat  # here, since other trainings start without planning

    if verb != "train":
        right = f"is built for `scaling train` alone; with `scaling {verb}` it must name a policy"
        raise refused("compute.remat", AUTO, right)
    text = _before(config, directory)
    if text:
        why = "as this run began"
    else:
        text, why = _chosen(config)
    log.info("compute.remat=%s is %s: %s", AUTO, text, why)
    return with_remat(config, text)


def _before(config: cfg.Config, directory: epath.Path) -> str:
    """The policy with which a run of the same layout was trained; empty if there is none."""
    try:
        old = cfg.freeze(read_config_json(directory)["config"])
    except (FileNotFoundError, KeyError, ValueError):
        return ""

    def layout(of: cfg.Config) -> tuple[object, ...]:
        return of.model, of.mesh, of.train.microbatch_sequences, dataclasses.replace(of.compute, remat="")

    return old.compute.remat if layout(old) == layout(config) else ""


def _chosen(config: cfg.Config) -> tuple[str, str]:
    """The choice for the devices that are here, and its reason in words."""
    from scaling.plan import recompute

    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return "none", "on CPUs nothing is recomputed"
    chip = chips.find(device.device_kind)
    if chip is None:
        right = f"needs a kind of device whose figures are known, unlike {device.device_kind!r}; must name a policy"
        raise refused("compute.remat", AUTO, right)
    memory = int((device.memory_stats() or {}).get("bytes_limit", chip.hbm / chip.devices))
    memory = distributed.least_of_processes(memory)
    text = recompute.choose(config, chip, (1 - recompute.MARGIN) * memory)
    return text, f"estimated for {memory / 2**30:.1f} GiB a device, {100 * recompute.MARGIN:.0f} % of them left free"
