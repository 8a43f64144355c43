"""Hugging Face folders (``config.json`` and safetensors) of GPT-2 and GPT-1, read and written.

Both sides hold the same numbers in the same order: Hugging Face's ``Conv1D`` weights are [in, out] like ours,
and its ``c_attn`` is our three [D, H, K] in one, with the last dimensions flattened. So conversion only
renames, reshapes and stacks layers, and is exact.
"""

import dataclasses
import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from scaling import durable
from scaling.config import schema as cfg
from scaling.interop.tensor_folder import WEIGHTS, TensorFolder
from scaling.model import decoder
from scaling.model.fused import apart, fused
from scaling.runs.config_json import read_config_json
from scaling.runs.model import load_run

CONFIG = "config.json"
PREFIX = "transformer."  # of the names in a folder of an LMHead model; bare models lack it


@dataclasses.dataclass(frozen=True)
class _Architecture:
    """What differs between the two: names, and which LayerNorm."""

    model_type: str
    class_name: str
    norm: str
    tokens: str
    positions: str
    activation_key: str
    default_activation: str
    activations: Mapping[str, str]  # theirs to ours; the first name of each of ours is the one written


_GPT2 = _Architecture(
    model_type="gpt2",
    class_name="GPT2LMHeadModel",
    norm="pre",
    tokens="wte.weight",
    positions="wpe.weight",
    activation_key="activation_function",
    default_activation="gelu_new",
    activations={"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"},
)
_GPT1 = _Architecture(
    model_type="openai-gpt",
    class_name="OpenAIGPTLMHeadModel",
    norm="post",
    tokens="tokens_embed.weight",
    positions="positions_embed.weight",
    activation_key="afn",
    default_activation="gelu",
    activations={"gelu": "gelu_tanh", "relu": "relu"},  # OpenAIGPT's "gelu" is the tanh form
)
_ARCHITECTURES = {a.model_type: a for a in (_GPT2, _GPT1)}

# (our path inside a block with fused queries, keys and values; their name inside a layer; leading dimensions of ours
# that are the input of a matrix)
_LAYER = (
    (("attention_norm", "gain"), "ln_1.weight", 0),
    (("attention_norm", "bias"), "ln_1.bias", 0),
    (("attention", "qkv"), "attn.c_attn.weight", 1),
    (("attention", "qkv_bias"), "attn.c_attn.bias", 0),
    (("attention", "out"), "attn.c_proj.weight", 2),
    (("attention", "out_bias"), "attn.c_proj.bias", 0),
    (("mlp_norm", "gain"), "ln_2.weight", 0),
    (("mlp_norm", "bias"), "ln_2.bias", 0),
    (("mlp", "up"), "mlp.c_fc.weight", 1),
    (("mlp", "up_bias"), "mlp.c_fc.bias", 0),
    (("mlp", "down"), "mlp.c_proj.weight", 1),
    (("mlp", "down_bias"), "mlp.c_proj.bias", 0),
)
_PADDED = (("tokens",), ("unembedding",))  # ours have padded_vocab rows, theirs vocab_size
_OUTPUT = "lm_head.weight"
_MASK_BUFFERS = r"h\.\d+\.attn\.(bias|masked_bias)"  # causal masks that old versions saved


def load(folder: str | os.PathLike[str], vocab_multiple: int = 1) -> tuple[cfg.Model, decoder.Params]:
    """Reads a GPT-2 or GPT-1 folder.

    Args:
        folder: holds config.json, and model.safetensors or model.safetensors.index.json with its shards.
        vocab_multiple: rows of the embedding are padded with zeros to a multiple of this.

    Returns:
        The model config, and the parameters in the layout of ``decoder.abstract`` as float32 NumPy arrays
        (half-precision weights are widened).

    Raises:
        FileNotFoundError: no config.json, no safetensors, or a shard is missing.
        ValueError: a model we do not have, or tensors that are missing, unknown or of the wrong shape.
    """
    folder = Path(folder)
    values = read_config_json(folder)
    model, architecture = _to_model(values, folder / CONFIG, vocab_multiple)
    with TensorFolder(folder, PREFIX) as tensors:
        return model, _read_params(model, architecture, tensors)


def save(model: cfg.Model, params: decoder.Params, folder: str | os.PathLike[str]) -> None:
    """Writes a folder that transformers' ``from_pretrained`` and ``load`` read; all of it or nothing.

    Args:
        model: resolved.
        params: float32 parameters, as ``load`` returns them.
        folder: new or empty; local.

    Raises:
        ValueError: Hugging Face's GPT-2 and GPT-1 cannot express this model.
        FileExistsError: the folder holds something.
        OSError: it cannot be written.
    """
    architecture, values = _from_model(model)
    target = Path(folder)
    _check_new(target)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        (partial / CONFIG).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
        tensors = _to_tensors(model, architecture, jax.device_get(params))
        safetensors.numpy.save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
        # safetensors writes files that only their owner can read.
        (partial / WEIGHTS).chmod((partial / CONFIG).stat().st_mode & 0o777)
        partial.rename(target)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        kind = type(error) if isinstance(error, OSError) else OSError
        raise kind(f"{target} could not be written: {getattr(error, 'strerror', None) or error}") from error


def _check_new(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists and is not an empty folder; nothing was overwritten")


def export(run_dir: str | os.PathLike[str], output_dir: str | os.PathLike[str]) -> None:
    """Writes the newest whole checkpoint of a run as a Hugging Face folder; errors as in ``load_run`` and ``save``."""
    read_config_json(run_dir)  # a run that is not there leaves no folder
    _check_new(Path(output_dir))  # before a large checkpoint is read
    if not Path(output_dir).exists():
        durable.check_writable(output_dir)
    network, params = load_run(run_dir)
    save(network.model, params, output_dir)


def _to_model(values: dict[str, Any], path: Path, vocab_multiple: int) -> tuple[cfg.Model, _Architecture]:
    """Our config for theirs; fields that are left out have transformers' defaults."""
    kind = values.get("model_type")
    if kind not in _ARCHITECTURES:
        raise ValueError(f"{path}: model_type {kind!r} is not supported; must be one of {', '.join(_ARCHITECTURES)}")
    architecture = _ARCHITECTURES[kind]

    def number(key: str, types: Any, low: float, high: float = math.inf, default: float | None = None) -> Any:
        value = default if values.get(key) is None else values[key]
        if isinstance(value, bool) or not isinstance(value, types) or not low <= value <= high:
            raise ValueError(f"{path}: {key} must be a number in [{low}, {high}], got {values.get(key)!r}")
        return value

    for key, supported in (
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
    ):
        if values.get(key, supported) is not supported:
            raise ValueError(f"{path}: {key}={values[key]!r} is not supported; must be {supported}")
    # reorder_and_upcast_attn asks for float32 scores and softmax, which is what our attention always does.
    activation = values.get(architecture.activation_key, architecture.default_activation)
    if activation not in architecture.activations:
        raise ValueError(
            f"{path}: {architecture.activation_key}={activation!r} is not supported; must be one of "
            f"{', '.join(architecture.activations)}"
        )
    d_model, heads = number("n_embd", int, 1), number("n_head", int, 1)
    if d_model % heads:
        raise ValueError(f"{path}: n_head={heads} must divide n_embd={d_model}")
    # OpenAIGPT has no n_inner, and ignores one.
    d_ff = number("n_inner", int, 1, default=4 * d_model) if architecture is _GPT2 else 4 * d_model
    model = cfg.Model(
        vocab_size=number("vocab_size", int, 1),
        vocab_multiple=vocab_multiple,
        context_length=number("n_positions", int, 1),
        num_layers=number("n_layer", int, 1),
        d_model=d_model,
        num_heads=heads,
        d_head=d_model // heads,
        d_ff=d_ff,
        norm=architecture.norm,
        norm_epsilon=float(number("layer_norm_epsilon", int | float, 0, default=1e-5)),
        activation=architecture.activations[activation],
        tied_embedding=values.get("tie_word_embeddings", True) is not False,
        dropout_embedding=float(number("embd_pdrop", int | float, 0, 1, default=0.1)),
        dropout_attention=float(number("attn_pdrop", int | float, 0, 1, default=0.1)),
        dropout_residual=float(number("resid_pdrop", int | float, 0, 1, default=0.1)),
        init_std=float(number("initializer_range", int | float, 0, default=0.02)),
        scale_residual_init=architecture is _GPT2,
    )
    return model, architecture


def _from_model(model: cfg.Model) -> tuple[_Architecture, dict[str, Any]]:
    """Architecture and config.json for our config, if they can express it."""
    architecture = _GPT2 if model.norm == "pre" else _GPT1
    names = {ours: theirs for theirs, ours in reversed(list(architecture.activations.items()))}
    banded = "banded" in model.attention_pattern and model.band_width < model.context_length
    for knob, value, possible, right in (
        ("parametrization", model.parametrization, model.parametrization == "standard", "'standard'"),
        ("attention_pattern", model.attention_pattern, not banded, "dense in all layers"),
        ("d_head", model.d_head, model.d_head * model.num_heads == model.d_model, "d_model / num_heads"),
        ("activation", model.activation, model.activation in names, " or ".join(names)),
        ("d_ff", model.d_ff, architecture is _GPT2 or model.d_ff == 4 * model.d_model, "4 * d_model"),
    ):
        if not possible:
            raise ValueError(
                f"config.model.{knob}={value!r} cannot be exported to Hugging Face's {architecture.model_type}; "
                f"there it must be {right}"
            )
    values: dict[str, Any] = {
        "model_type": architecture.model_type,
        "architectures": [architecture.class_name],
        "vocab_size": model.vocab_size,
        "n_positions": model.context_length,
        "n_embd": model.d_model,
        "n_layer": model.num_layers,
        "n_head": model.num_heads,
        architecture.activation_key: names[model.activation],
        "layer_norm_epsilon": model.norm_epsilon,
        "embd_pdrop": model.dropout_embedding,
        "attn_pdrop": model.dropout_attention,
        "resid_pdrop": model.dropout_residual,
        "initializer_range": model.init_std,
        "tie_word_embeddings": model.tied_embedding,
        # transformers would otherwise assume GPT-2's own end of text, which may lie outside the vocabulary.
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if architecture is _GPT2:
        values["n_inner"] = None if model.d_ff == 4 * model.d_model else model.d_ff
    return architecture, values


def _top_level(model: cfg.Model, architecture: _Architecture) -> list[tuple[tuple[str, ...], str]]:
    """(our path, their name without prefix) of the parameters outside the layers."""
    names: list[tuple[tuple[str, ...], str]] = []
    names += [(("tokens",), architecture.tokens), (("positions",), architecture.positions)]
    if model.norm == "pre":
        names += [(("final_norm", "gain"), "ln_f.weight"), (("final_norm", "bias"), "ln_f.bias")]
    if not model.tied_embedding:
        names.append((("unembedding",), _OUTPUT))
    return names


def _in_layer(shape: tuple[int, ...], input_dims: int) -> tuple[int, ...]:
    """Their shape of one layer's parameter, given ours."""
    flat = math.prod(shape[input_dims:])
    return (math.prod(shape[:input_dims]), flat) if input_dims else (flat,)


def _read_params(model: cfg.Model, architecture: _Architecture, tensors: TensorFolder) -> decoder.Params:
    shapes = fused(decoder.abstract(model))
    params: decoder.Params = {}
    expected: dict[str, tuple[int, ...]] = {}
    parts: list[tuple[str, np.ndarray]] = []  # (their name, the piece of ours that it fills)

    for path, name in _top_level(model, architecture):
        ours = np.zeros(_leaf(shapes, path).shape, np.float32)
        piece = ours[: model.vocab_size] if path in _PADDED else ours
        expected[name] = piece.shape
        parts.append((name, piece))
        _set_leaf(params, path, ours)
    for path, name, input_dims in _LAYER:
        path = (decoder.STACK, *path)
        ours = np.empty(_leaf(shapes, path).shape, np.float32)
        for layer in range(model.num_layers):
            expected[f"h.{layer}.{name}"] = _in_layer(ours.shape[1:], input_dims)
            parts.append((f"h.{layer}.{name}", ours[layer]))
        _set_leaf(params, path, ours)

    if model.tied_embedding and architecture.tokens not in tensors.names and _OUTPUT in tensors.names:
        tensors.names[architecture.tokens] = tensors.names.pop(_OUTPUT)  # some tools write the shared one once, so
    ignored = f"{_MASK_BUFFERS}|{re.escape(_OUTPUT)}" if model.tied_embedding else _MASK_BUFFERS
    tensors.check(expected, ignored)
    for name, piece in parts:
        piece[...] = tensors.read(name).reshape(piece.shape)
    tied_head = tensors.read(_OUTPUT) if model.tied_embedding and _OUTPUT in tensors.names else None
    if tied_head is not None and not np.array_equal(tied_head, params["tokens"][: model.vocab_size]):
        raise ValueError(
            f"{tensors.folder}: {_OUTPUT} differs from {architecture.tokens} although tie_word_embeddings is true "
            f"in {CONFIG}; set it to false there, or remove {_OUTPUT}"
        )
    return apart(params)


def _to_tensors(model: cfg.Model, architecture: _Architecture, params: decoder.Params) -> dict[str, np.ndarray]:
    """Their named tensors for our parameters."""
    tensors, params = {}, fused(params)
    for path, name in _top_level(model, architecture):
        tensor = np.asarray(_leaf(params, path), np.float32)
        if path in _PADDED:
            tensor = tensor[: model.vocab_size]
        tensors[name if name == _OUTPUT else PREFIX + name] = tensor
    for path, name, input_dims in _LAYER:
        stacked = np.asarray(_leaf(params, (decoder.STACK, *path)), np.float32)
        for layer, tensor in enumerate(stacked):
            tensors[f"{PREFIX}h.{layer}.{name}"] = tensor.reshape(_in_layer(tensor.shape, input_dims))
    return tensors


def _leaf(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _set_leaf(tree: dict[str, Any], path: tuple[str, ...], value: np.ndarray) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value
