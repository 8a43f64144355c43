"""Hugging Face folders (``config.json`` and safetensors), read and written.

Which kinds there are, and how they spell their config and tensors, is data in ``interop/families``; ``config_keys`` and
``weights`` read and write all of them by it.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from scaling import durable
from scaling.config import schema as cfg
from scaling.interop import config_keys, gguf_file, new_folder, shards, tokenizer_files, weights
from scaling.interop.family import with_knobs
from scaling.interop.tensor_folder import TensorFolder
from scaling.model import decoder
from scaling.paths import must_be_local
from scaling.runs.config_json import read_config_json
from scaling.runs.model import open_run
from scaling.runs.stores import by_path

CONFIG = "config.json"
SHARD_GB = 5.0  # as transformers writes them


@contextlib.contextmanager
def opened(folder: str | os.PathLike[str], vocab_multiple: int = 1) -> Iterator[weights.FolderWeights]:
    """The model of a folder or of a GGUF file, with parameters that are not read yet.

    Args:
        folder: holds config.json, and model.safetensors or model.safetensors.index.json with its shards; or the file.
        vocab_multiple: rows of the embedding are padded with zeros to a multiple of this.

    Raises:
        FileNotFoundError: no config.json, no safetensors, or a shard is missing.
        ValueError: a model we do not have, or tensors that are missing, unknown or of the wrong shape.
    """
    must_be_local("the Hugging Face folder", folder)
    folder = Path(folder)
    if folder.is_file():
        yield gguf_file.opened(folder, vocab_multiple)
        return
    values = read_config_json(folder)
    model, family = config_keys.to_model(values, str(folder / CONFIG), vocab_multiple)
    scaled = bool(family.scaled_by_layer and values.get(family.scaled_by_layer))
    with TensorFolder(folder, family.prefix, family.respelled) as tensors:
        there = " ".join(knobs for name, knobs in family.optional.items() if name in tensors.names).split()
        model = with_knobs(model, {knob.lstrip("-"): not knob.startswith("-") for knob in there})
        yield weights.FolderWeights(model, family, tensors, scaled)


def load(folder: str | os.PathLike[str], vocab_multiple: int = 1) -> tuple[cfg.Model, decoder.Params]:
    """The model config of a folder, and the parameters in the layout of ``decoder.abstract`` as float32 NumPy arrays.

    Half-precision weights are widened. Arguments and errors are those of ``opened``; numbers that are not finite are a
    ValueError, too.
    """
    with opened(folder, vocab_multiple) as found:
        return found.model, found.read()


def save(
    model: cfg.Model,
    params: decoder.Params,
    folder: str | os.PathLike[str],
    dtype: str = "float32",
    shard_gb: float = SHARD_GB,
) -> None:
    """Writes a folder that transformers' ``from_pretrained`` and ``load`` read; all of it or nothing.

    Args:
        model: resolved. Of a discriminator its generator is left out.
        params: float32 parameters, as ``load`` returns them.
        folder: new or empty; local.
        dtype: of the tensors, a key of ``shards.DTYPES``.
        shard_gb: largest file of tensors, in 1e9 bytes; a larger model gets several and an index.

    Raises:
        ValueError: no family of Hugging Face can express this model, or float16 cannot hold a number of it.
        FileExistsError: the folder holds something.
        OSError: it cannot be written.
    """
    _save(model, by_path(jax.device_get(params)), Path(folder), dtype, shard_gb, tokenizer_files.NOTHING)


def export(
    run_dir: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    dtype: str = "float32",
    shard_gb: float = SHARD_GB,
    generator: bool = False,
) -> None:
    """Writes the newest whole checkpoint of a run, and its tokenizer; the parameters need not fit the memory.

    Arguments and errors are those of ``save``, and the errors those of ``open_run``, too. With ``generator`` the
    generator of a discriminator is written in its place, and a run without one is a ValueError.
    """
    values = read_config_json(run_dir)  # a run that is not there leaves no folder
    new_folder.check_new(Path(output_dir))  # before a large checkpoint is verified
    if not Path(output_dir).exists():
        durable.check_writable(output_dir)
    network, params = open_run(run_dir)
    model = network.model
    if generator:
        if not model.generates:
            raise ValueError(f"{os.fspath(run_dir)} has no generator beside a discriminator")
        model, params = model.generator, _of_generator(model.generator, params)
    beside = tokenizer_files.of_run(run_dir, values, model)
    _save(model, params, Path(output_dir), dtype, shard_gb, beside)


def _save(
    model: cfg.Model,
    params: Mapping[str, Any],
    target: Path,
    dtype: str,
    shard_gb: float,
    beside: tokenizer_files.Beside,
) -> None:
    """As ``save``; the parameters by path, sliced as they are needed, and the files of a tokenizer beside them."""
    if dtype not in shards.DTYPES:
        raise ValueError(f"dtype={dtype!r} must be one of {', '.join(shards.DTYPES)}")
    if not shard_gb > 0:
        raise ValueError(f"shard_gb={shard_gb} must be more than 0")
    model = dataclasses.replace(model, generator_layers=0, generator_width=0)
    values, family = config_keys.from_model(model, beside.model_type)
    values |= {"dtype": dtype, "torch_dtype": dtype} if dtype != "float32" else {}
    values |= beside.config
    target = target.absolute()
    with new_folder.filling(target) as partial, _naming(target):
        (partial / CONFIG).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
        for name, content in beside.files.items():
            (partial / name).write_bytes(content)
        tensors = weights.to_tensors(model, family, params)
        shards.write(partial, weights.shapes(model, family), tensors, dtype, shard_gb * 1e9)


def _of_generator(model: cfg.Model, params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a generator by path, of those of its discriminator, which has some of them."""
    return {path: params.get(f"generator.{path}", params.get(path)) for path in by_path(decoder.abstract(model))}


@contextlib.contextmanager
def _naming(target: Path) -> Iterator[None]:
    """Errors of the system name the folder that the user gave, and not a file in the unfinished one."""
    try:
        yield
    except OSError as error:
        raise type(error)(f"{target} could not be written: {error.strerror or error}") from error
