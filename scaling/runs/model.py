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
    """The newest whole checkpoint.

    Args:
        run_dir: of ``scaling train``.
        mesh: the parameters are laid out on it as in training.

    Raises:
        FileNotFoundError: no config.json.
        ValueError: not a run directory, or one without a whole checkpoint.
    """
    with _newest(run_dir) as (checkpoints, step, meta, network):
        shapes = decoder.abstract(network.model)
        where = decoder.shardings(network.model, mesh)
        target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where)
        return Checkpoint(network, checkpoints.read_params(step, target), step, meta["tokens"])


def load_run(run_dir: epath.PathLike) -> tuple[cfg.Network, decoder.Params]:
    """Network and parameters of ``load_checkpoint``, on one device."""
    found = load_checkpoint(run_dir, one_device())
    return found.network, found.params


def open_run(run_dir: epath.PathLike) -> tuple[cfg.Network, Mapping[str, Any]]:
    """Network and parameters of the newest whole checkpoint, these by path, and each read when it is sliced.

    Raises what ``load_checkpoint`` raises.
    """
    with _newest(run_dir) as (checkpoints, step, _, network):
        return network, checkpoints.open_params(step, decoder.abstract(network.model))


@contextlib.contextmanager
def _newest(run_dir: epath.PathLike) -> Iterator[tuple[Checkpoints, int, dict[str, Any], cfg.Network]]:
    """The checkpoints of a run, and of the newest whole one the step, meta and network."""
    if "config" not in read_config_json(run_dir):
        raise ValueError(f"{epath.Path(run_dir) / CONFIG} was not written by `scaling train`: no key 'config'")
    checkpoints = Checkpoints(run_dir)
    try:
        saved = checkpoints.newest_whole()
        if saved is None:
            raise ValueError(f"{run_dir} holds no checkpoint yet")
        step, meta = saved
        # The checkpoint's own network: config.json may be of a later attempt.
        yield checkpoints, step, meta, cfg.freeze(meta["config"]).network
    finally:
        checkpoints.close()
