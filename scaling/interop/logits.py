"""Logits of any model we can read, so that anyone can compare them with another implementation."""

import dataclasses
import functools
import os

import jax
import numpy as np

from scaling.config import schema as cfg
from scaling.interop import huggingface
from scaling.model import decoder
from scaling.parallel.mesh import one_device
from scaling.runs.config_json import read_config_json
from scaling.runs.model import load_run

_FLOATS_AT_ONCE = 2**26  # the largest array of one batch of rows: 256 MiB of float32


def logits(model: str | os.PathLike[str], ids: np.ndarray) -> np.ndarray:
    """Next-token logits in float32, whatever the model was trained in, without dropout.

    Each row is one document: a model trained with ``document_mask`` sees all of it.

    Args:
        model: run directory of ``scaling train`` (its newest whole checkpoint), or a Hugging Face folder.
        ids: token ids, integers [B, T] or [T], T at most the model's context.

    Returns:
        float32 [B, T, vocab_size] (B = 1 for one-dimensional ids).

    Raises:
        FileNotFoundError: there is no model.
        ValueError: ids of the wrong kind, too long or outside the vocabulary; a damaged or unknown model.
    """
    ids = _matrix(ids)
    network, params = load_model(model)
    _check_ids(ids, network.model)
    return compute(network, params, ids)


def load_model(path: str | os.PathLike[str]) -> tuple[cfg.Network, decoder.Params]:
    """Network and float32 parameters of a run directory or a Hugging Face folder, told apart by config.json."""
    values = read_config_json(path)
    if "config" in values:
        return load_run(path)
    if "model_type" in values:
        model, params = huggingface.load(path)
        return cfg.Network(model), params
    raise ValueError(
        f"{os.fspath(path)}: config.json has neither 'config', as in a run directory, nor 'model_type', "
        "as in a Hugging Face folder"
    )


def compute(network: cfg.Network, params: decoder.Params, ids: np.ndarray) -> np.ndarray:
    """Logits float32 [B, T, vocab_size] of integer ids [B, T]; a few rows at a time, so that memory stays bounded."""
    network = cfg.Network(network.model, dataclasses.replace(network.compute, dtype="float32"))
    config = network.model
    count, length = ids.shape
    widest = max(config.padded_vocab, config.num_heads * length, config.d_ff)
    rows = min(count, max(1, _FLOATS_AT_ONCE // (length * widest)))
    result = np.empty((count, length, config.vocab_size), np.float32)
    mesh = one_device()
    params = jax.device_put(params, decoder.shardings(config, mesh))
    for start in range(0, count, rows):
        part = ids[start : start + rows].astype(np.int32)
        size = len(part)
        part = np.pad(part, ((0, rows - size), (0, 0)))  # one shape, one compilation
        with jax.set_mesh(mesh):
            result[start : start + size] = np.asarray(_forward(network, params, part))[:size]
    return result


@functools.partial(jax.jit, static_argnums=0)
# Accelerators otherwise round the inputs of float32 products to fewer bits.
@jax.default_matmul_precision("highest")
def _forward(network: cfg.Network, params: decoder.Params, ids: jax.Array) -> jax.Array:
    model = decoder.merge(network, params)
    return model.logits(model(ids))


def _matrix(ids: np.ndarray) -> np.ndarray:
    ids = np.asarray(ids)
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"ids must be integers, not {ids.dtype}")
    if ids.ndim not in (1, 2) or not ids.size:
        raise ValueError(f"ids must have shape [batch, time] or [time] with at least one token, got {list(ids.shape)}")
    return np.atleast_2d(ids)


def _check_ids(ids: np.ndarray, config: cfg.Model) -> None:
    if ids.shape[1] > config.context_length:
        raise ValueError(f"ids are {ids.shape[1]} tokens long; the model has {config.context_length} positions")
    outside = np.argwhere((ids < 0) | (ids >= config.vocab_size))
    if len(outside):
        row, column = map(int, outside[0])
        raise ValueError(
            f"ids[{row}, {column}] is {ids[row, column]}, outside the vocabulary of {config.vocab_size} tokens "
            f"(0 to {config.vocab_size - 1})"
        )
