"""Hugging Face folders (``config.json`` and safetensors) of decoders, read and written.

Which kinds there are, and how they spell their config and tensors, is data in ``interop/families``; ``config_keys`` and
``weights`` read and write all of them by it.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from scaling import durable
from scaling.config import schema as cfg
from scaling.interop import config_keys, gguf_file, tokenizer_files, weights
from scaling.interop.tensor_folder import INDEX, WEIGHTS, TensorFolder
from scaling.model import decoder
from scaling.runs.config_json import read_config_json
from scaling.runs.model import load_run

CONFIG = "config.json"
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
SHARD_GB = 5.0  # as transformers writes them


def load(folder: str | os.PathLike[str], vocab_multiple: int = 1) -> tuple[cfg.Model, decoder.Params]:
    """Reads a folder of one of the families, or a GGUF file.

    Args:
        folder: holds config.json, and model.safetensors or model.safetensors.index.json with its shards; or the file.
        vocab_multiple: rows of the embedding are padded with zeros to a multiple of this.

    Returns:
        The model config, and the parameters in the layout of ``decoder.abstract`` as float32 NumPy arrays
        (half-precision weights are widened).

    Raises:
        FileNotFoundError: no config.json, no safetensors, or a shard is missing.
        ValueError: a model we do not have, or tensors that are missing, unknown or of the wrong shape.
    """
    folder = Path(folder)
    if folder.is_file():
        return gguf_file.load(folder, vocab_multiple)
    values = read_config_json(folder)
    model, family = config_keys.to_model(values, str(folder / CONFIG), vocab_multiple)
    scaled = bool(family.scaled_by_layer and values.get(family.scaled_by_layer))
    with TensorFolder(folder, family.prefix) as tensors:
        return model, weights.read_params(model, family, tensors, scaled)


def save(
    model: cfg.Model,
    params: decoder.Params,
    folder: str | os.PathLike[str],
    dtype: str = "float32",
    shard_gb: float = SHARD_GB,
    beside: tokenizer_files.Beside = tokenizer_files.NOTHING,
) -> None:
    """Writes a folder that transformers' ``from_pretrained`` and ``load`` read; all of it or nothing.

    Args:
        model: resolved.
        params: float32 parameters, as ``load`` returns them.
        folder: new or empty; local.
        dtype: of the tensors, a key of ``DTYPES``.
        shard_gb: largest file of tensors, in 1e9 bytes; a larger model gets several and an index.
        beside: the files of its tokenizer, and what else config.json says.

    Raises:
        ValueError: no family of Hugging Face can express this model, or float16 cannot hold a number of it.
        FileExistsError: the folder holds something.
        OSError: it cannot be written.
    """
    if dtype not in DTYPES or not shard_gb > 0:
        raise ValueError(f"dtype={dtype!r} must be one of {', '.join(DTYPES)}, and shard_gb={shard_gb} more than 0")
    values, family = config_keys.from_model(model, beside.model_type)
    values |= {"dtype": dtype, "torch_dtype": dtype} if dtype != "float32" else {}
    values |= beside.config
    target = Path(folder)
    check_new(target)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        (partial / CONFIG).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
        for name, content in beside.files.items():
            (partial / name).write_bytes(content)
        _write(partial, weights.to_tensors(model, family, jax.device_get(params)), dtype, shard_gb * 1e9)
        partial.rename(target)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        kind = type(error) if isinstance(error, OSError) else OSError
        raise kind(f"{target} could not be written: {getattr(error, 'strerror', None) or error}") from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def export(
    run_dir: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    dtype: str = "float32",
    shard_gb: float = SHARD_GB,
) -> None:
    """Writes the newest whole checkpoint of a run, and its tokenizer; errors as in ``load_run`` and ``save``."""
    values = read_config_json(run_dir)  # a run that is not there leaves no folder
    check_new(Path(output_dir))  # before a large checkpoint is read
    if not Path(output_dir).exists():
        durable.check_writable(output_dir)
    network, params = load_run(run_dir)
    beside = tokenizer_files.of_run(run_dir, values, network.model)
    save(network.model, params, output_dir, dtype, shard_gb, beside)


def check_new(target: Path) -> None:
    """Refuses a folder that holds something."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists and is not an empty folder; nothing was overwritten")


def _write(folder: Path, tensors: Iterator[tuple[str, np.ndarray]], dtype: str, limit: float) -> None:
    """One file, or shards and an index; only one shard is in memory at a time."""
    shards: list[list[str]] = []
    part: dict[str, np.ndarray] = {}
    total = 0
    for name, tensor in tensors:
        tensor = _narrowed(name, tensor, dtype)
        if part and sum(other.nbytes for other in part.values()) + tensor.nbytes > limit:
            shards.append(_write_shard(folder, part, len(shards)))
            part = {}
        part[name] = tensor
        total += tensor.nbytes
    shards.append(_write_shard(folder, part, len(shards)))
    names = [WEIGHTS] if len(shards) == 1 else [f"model-{i:05d}-of-{len(shards):05d}.safetensors"
                                               for i in range(1, len(shards) + 1)]  # fmt: skip
    for number, name in enumerate(names):
        (folder / f"shard-{number}").rename(folder / name)
    if len(names) > 1:
        where = {tensor: name for name, held in zip(names, shards, strict=True) for tensor in held}
        index: Mapping[str, Any] = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write_shard(folder: Path, tensors: dict[str, np.ndarray], number: int) -> list[str]:
    path = folder / f"shard-{number}"
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})
    # safetensors writes files that only their owner can read.
    path.chmod((folder / CONFIG).stat().st_mode & 0o777)
    return list(tensors)


def _narrowed(name: str, tensor: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        narrow = tensor.astype(DTYPES[dtype])
    largest = float(np.abs(tensor).max(initial=0))
    if math.isfinite(largest) and not np.isfinite(narrow.astype(np.float32)).all():
        raise ValueError(f"{dtype} cannot hold {largest:g}, which tensor {name} has; export as bfloat16 or float32")
    return narrow
