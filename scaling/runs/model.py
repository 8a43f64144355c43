"""Loads the model of a run directory."""

import dataclasses

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
    if "config" not in read_config_json(run_dir):
        raise ValueError(f"{epath.Path(run_dir) / CONFIG} was not written by `scaling train`: no key 'config'")
    checkpoints = Checkpoints(run_dir)
    try:
        saved = checkpoints.newest_whole()
        if saved is None:
            raise ValueError(f"{run_dir} holds no checkpoint yet")
        step, meta = saved
        network = cfg.freeze(meta["config"]).network  # the checkpoint's own: config.json may be of a later attempt
        shapes = decoder.abstract(network.model)
        where = decoder.shardings(network.model, mesh)
        target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where)
        return Checkpoint(network, checkpoints.read_params(step, target), step, meta["tokens"])
    finally:
        checkpoints.close()


def load_run(run_dir: epath.PathLike) -> tuple[cfg.Network, decoder.Params]:
    """Network and parameters of ``load_checkpoint``, on one device."""
    found = load_checkpoint(run_dir, one_device())
    return found.network, found.params
