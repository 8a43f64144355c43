"""Logits of any model we can read, so that anyone can compare them with another implementation."""

import dataclasses
import functools
import os

import jax
import numpy as np

from scaling.config import schema as cfg
from scaling.interop import huggingface
from scaling.model import decoder
from scaling.model.context import AttentionContext
from scaling.parallel.mesh import one_device
from scaling.runs.config_json import read_config_json
from scaling.runs.model import load_run

_FLOATS_AT_ONCE = 2**26  # the largest array of one batch of rows: 256 MiB of float32


def logits(
    model: str | os.PathLike[str],
    ids: np.ndarray,
    mask: np.ndarray | None = None,
    types: np.ndarray | None = None,
    decoder_ids: np.ndarray | None = None,
) -> np.ndarray:
    """Logits in float32, whatever the model was trained in, without dropout: of the next token, or of an encoder's own.

    Those of a discriminator say of each token whether another model has replaced it. Each row is one document: a model
    trained with ``document_mask`` sees all of it.

    Args:
        model: run directory of ``scaling train`` (its newest whole checkpoint), or a Hugging Face folder.
        ids: token ids, integers [B, T] or [T], T at most the model's context.
        mask: 1 where a token is, 0 where there is padding, integers like ``ids``; None = no padding. For encoders.
        types: kinds of the tokens, integers like ``ids``; None = all 0.
        decoder_ids: of a model with an encoder beside its decoder: what the decoder reads, integers [B, T] or [T]. Then
            ``ids`` and ``mask`` [B, S] are the encoder's.

    Returns:
        float32 [B, T, vocab_size], of a discriminator [B, T] (B = 1 for one-dimensional ids).

    Raises:
        FileNotFoundError: there is no model.
        ValueError: ids of the wrong kind, too long or outside the vocabulary; a damaged or unknown model; a mask or
            types that the model does not have; a row of padding alone; an encoder without logits.
    """
    ids = _matrix(ids)
    network, params = load_model(model)
    _check_ids(ids, network.model)
    if (decoder_ids is not None) != bool(network.model.encoder_layers):
        has = (
            "has an encoder, so it needs" if decoder_ids is None else "has no encoder beside a decoder, so it takes no"
        )
        raise ValueError(f"{os.fspath(model)} {has} decoder_ids")
    if decoder_ids is not None:
        decoder_ids = _matrix(decoder_ids, "decoder_ids")
        _check_ids(decoder_ids, network.model, "decoder_ids")
        if len(decoder_ids) != len(ids):
            raise ValueError(f"decoder_ids must have as many rows as ids, {len(ids)}, got {len(decoder_ids)}")
    if not (network.model.has_logits or network.model.discriminates):
        raise ValueError(f"{os.fspath(model)} is an encoder without logits; `scaling embed` gives its vectors")
    if mask is not None and network.model.causal and decoder_ids is None:
        raise ValueError(f"{os.fspath(model)} sees no padding that comes after a text, so it takes no mask")
    kinds = network.model.token_types
    if types is not None and not kinds:
        raise ValueError(f"{os.fspath(model)} tells no types of tokens apart")
    mask, types = _like(ids, mask, "mask", 2), _like(ids, types, "types", kinds)
    if mask is not None and not mask.any(axis=1).all():
        row = int(np.argmin(mask.any(axis=1)))
        raise ValueError(f"row {row} of the mask is padding alone; each row must have a token, where the mask is 1")
    return compute(network, params, ids, mask, types, decoder_ids)


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


def compute(
    network: cfg.Network,
    params: decoder.Params,
    ids: np.ndarray,
    mask: np.ndarray | None = None,
    types: np.ndarray | None = None,
    decoder_ids: np.ndarray | None = None,
) -> np.ndarray:
    """As ``logits``, after its checks: its arrays, a few rows at a time, so that memory stays bounded."""
    network = cfg.Network(network.model, dataclasses.replace(network.compute, dtype="float32"))
    config = network.model
    predicted = ids if decoder_ids is None else decoder_ids
    count, length = len(ids), max(ids.shape[1], predicted.shape[1])
    widest = max(config.padded_vocab, config.num_heads * length, config.d_ff)
    rows = min(count, max(1, _FLOATS_AT_ONCE // (length * widest)))
    result = np.empty((*predicted.shape, *(() if config.discriminates else (config.vocab_size,))), np.float32)
    mesh = one_device()
    params = jax.device_put(params, decoder.shardings(config, mesh))
    for start in range(0, count, rows):

        def part(whole: np.ndarray | None, start: int = start) -> np.ndarray | None:
            if whole is None:
                return None
            some = whole[start : start + rows].astype(np.int32)
            return np.pad(some, ((0, rows - len(some)), (0, 0)))  # one shape, one compilation

        with jax.set_mesh(mesh):
            found = np.asarray(_forward(network, params, *map(part, (ids, mask, types, decoder_ids))))
            result[start : start + rows] = found[: count - start]
    return result


@functools.partial(jax.jit, static_argnums=0)
# Accelerators otherwise round the inputs of float32 products to fewer bits.
@jax.default_matmul_precision("highest")
def _forward(
    network: cfg.Network,
    params: decoder.Params,
    ids: jax.Array,
    mask: jax.Array | None,
    types: jax.Array | None,
    decoder_ids: jax.Array | None,
) -> jax.Array:
    model, context = decoder.merge(network, params), padded(mask, types)
    if decoder_ids is not None:
        return model.logits(model(decoder_ids, AttentionContext(source=model.encode(ids, context.segments))))
    states = model(ids, context)
    return model.replaced_logits(states) if network.model.discriminates else model.logits(states)


def padded(mask: jax.Array | None, types: jax.Array | None) -> AttentionContext:
    """What tokens see where a mask [B, T] is 0 at padding: the padding is a segment of its own."""
    return AttentionContext(segments=None if mask is None else 1 - mask, types=types)


def _matrix(ids: np.ndarray, name: str = "ids") -> np.ndarray:
    ids = np.asarray(ids)
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{name} must be integers, not {ids.dtype}")
    if ids.ndim not in (1, 2) or not ids.size:
        shape = list(ids.shape)
        raise ValueError(f"{name} must have shape [batch, time] or [time] with at least one token, got {shape}")
    return np.atleast_2d(ids)


def _like(ids: np.ndarray, given: np.ndarray | None, name: str, kinds: int) -> np.ndarray | None:
    """What belongs to each token: integers from 0 to ``kinds`` - 1."""
    if given is None:
        return None
    given = np.atleast_2d(np.asarray(given))
    if given.shape != ids.shape or not np.issubdtype(given.dtype, np.integer):
        raise ValueError(f"{name} must be integers of the shape of ids, {list(ids.shape)}, got {list(given.shape)}")
    if given.min() < 0 or given.max() >= kinds:
        raise ValueError(f"{name} must be in [0, {kinds - 1}], got {given.min()} to {given.max()}")
    return given


def _check_ids(ids: np.ndarray, config: cfg.Model, name: str = "ids") -> None:
    if ids.shape[1] > config.context_length:
        raise ValueError(f"{name} are {ids.shape[1]} tokens long; the model has {config.context_length} positions")
    outside = np.argwhere((ids < 0) | (ids >= config.vocab_size))
    if len(outside):
        row, column = map(int, outside[0])
        raise ValueError(
            f"{name}[{row}, {column}] is {ids[row, column]}, outside the vocabulary of {config.vocab_size} tokens "
            f"(0 to {config.vocab_size - 1})"
        )
