"""Loads the model of a run directory."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from etils import epath

from scaling.config import schema as cfg
from scaling.model import decoder
from scaling.parallel.mesh import one_device
from scaling.runs.checkpoint import Checkpoints
from scaling.runs.config_json import read_config_json
from scaling.runs.paths import CONFIG
from scaling.runs.start import read_whole, target
from scaling.runs.stores import by_path


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The model of a run at a step.

    Attributes:
        network: the model, and how it was computed in training.
        params: float32.
        step: steps done.
        tokens: trained on so far.
    """

    network: cfg.Network
    params: decoder.Params
    step: int
    tokens: int


def load_checkpoint(run_dir: epath.PathLike, mesh: jax.sharding.Mesh) -> Checkpoint:
    """The checkpoint that ``Checkpoints.chosen`` names: the newest whole one, or the best.

    Args:
        run_dir: of ``scaling train``.
        mesh: the parameters are laid out on it as in training.

    Raises:
        FileNotFoundError: no config.json.
        ValueError: not a run directory, or one without a whole checkpoint; or it has adapters, and the checkpoint that
            they belong to is gone or has changed.
    """
    with _chosen(run_dir) as (checkpoints, step, meta, config):
        return Checkpoint(config.network, read_whole(checkpoints, step, meta, run_dir, mesh), step, meta["tokens"])


def load_run(run_dir: epath.PathLike) -> tuple[cfg.Network, decoder.Params]:
    """Network and parameters of ``load_checkpoint``, on one device."""
    found = load_checkpoint(run_dir, one_device())
    return found.network, found.params


def open_run(run_dir: epath.PathLike) -> tuple[cfg.Network, Mapping[str, Any]]:
    """Network and parameters of the checkpoint of ``load_checkpoint``, these by path, each read when it is sliced.

    Those of a run with adapters are merged, and all in memory. Raises what ``load_checkpoint`` raises.
    """
    with _chosen(run_dir) as (checkpoints, step, meta, config):
        if config.lora.rank:
            whole = read_whole(checkpoints, step, meta, run_dir, one_device())
            return config.network, by_path(jax.device_get(whole))
        return config.network, checkpoints.open_params(step, decoder.abstract(config.model))


def load_adapters(run_dir: epath.PathLike) -> tuple[cfg.Config, Mapping[str, Any]]:
    """The config of the checkpoint of ``load_checkpoint``, and its adapters by path, float32 NumPy arrays.

    Raises:
        FileNotFoundError, ValueError: as ``load_checkpoint``, or a run without adapters.
    """
    with _chosen(run_dir) as (checkpoints, step, _, config):
        if not config.lora.rank:
            raise ValueError(f"{run_dir} has no adapters; a run has them that is trained with config.lora.rank")
        return config, by_path(jax.device_get(checkpoints.read_params(step, target(config, one_device()))))


@contextlib.contextmanager
def _chosen(run_dir: epath.PathLike) -> Iterator[tuple[Checkpoints, int, dict[str, Any], cfg.Config]]:
    """The checkpoints of a run, and of the one that readers take the step, meta and config."""
    values = read_config_json(run_dir)
    if "config" not in values:
        raise ValueError(f"{epath.Path(run_dir) / CONFIG} was not written by `scaling train`: no key 'config'")
    checkpoints = Checkpoints(run_dir)
    try:
        saved = checkpoints.chosen(cfg.freeze(values["config"]).checkpoint.choose)
        if saved is None:
            raise ValueError(f"{run_dir} holds no checkpoint yet")
        step, meta = saved
        # The checkpoint's own config: config.json may be of a later attempt.
        yield checkpoints, step, meta, cfg.freeze(meta["config"])
    finally:
        checkpoints.close()
