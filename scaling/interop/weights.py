"""Between the tensors of a Hugging Face folder and our parameters, both ways, by the tables of ``interop/families``.

Conversion renames, cuts, stacks and turns axes, and is exact. Norms that store their gain less 1, and scores divided by
the number of the layer, are folded into our weights when they are read.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from scaling.config import schema as cfg
from scaling.interop.family import Family
from scaling.interop.tensor_folder import TensorFolder
from scaling.model import decoder

# Axes of our parameters: D model, F MLP, H heads, K features of a head, N heads of keys, P positions, V tokens (ours
# have padded_vocab, theirs vocab_size), W width of the embedding.
AXES = {
    "tokens": "VW",
    "positions": "PD",
    "project_in": "WD",
    "project_out": "DW",
    "unembedding": "VW",
    "logit_bias": "V",
    "attention.query": "DHK",
    "attention.key": "DNK",
    "attention.value": "DNK",
    "attention.query_bias": "HK",
    "attention.key_bias": "NK",
    "attention.value_bias": "NK",
    "attention.query_norm.gain": "K",
    "attention.key_norm.gain": "K",
    "attention.out": "HKD",
    "attention.out_bias": "D",
    "mlp.up": "DF",
    "mlp.gate": "DF",
    "mlp.down": "FD",
    "mlp.up_bias": "F",
    "mlp.gate_bias": "F",
    "mlp.down_bias": "D",
} | {f"{norm}.{part}": "D" for norm in ("attention_norm", "mlp_norm", "embedding_norm", "final_norm")
     for part in ("gain", "bias")}  # fmt: skip
_HEAD = ("unembedding", "logit_bias")  # outside of what bare models have, so without the prefix


class _Tensor(NamedTuple):
    """A tensor of theirs.

    Attributes:
        name: without the prefix.
        ours: paths of the parameters that it holds, joined by dots.
        layer: its number; None outside of the layers.
        layout: as in ``Family``.
        shape: as the model's sizes make it.
    """

    name: str
    ours: tuple[str, ...]
    layer: int | None
    layout: str
    shape: tuple[int, ...]


def read_params(model: cfg.Model, family: Family, tensors: TensorFolder, scaled_by_layer: bool) -> decoder.Params:
    """Parameters in the layout of ``decoder.abstract``, float32 NumPy arrays; every tensor is used, every one filled.

    Args:
        model: resolved.
        family: its table.
        tensors: of the folder.
        scaled_by_layer: scores are divided by the number of the layer.

    Raises:
        ValueError: tensors that are missing, unknown, misshapen or not finite, or a tied head that differs.
    """
    entries, sizes = list(_tensors(model, family)), _sizes(model)
    head, tokens = (_name_of(family, part) for part in ("unembedding", "tokens"))
    if model.tied_embedding and tokens not in tensors.names and head in tensors.names:
        tensors.names[tokens] = tensors.names.pop(head)  # some tools write the shared one once, so
    ignored = "|".join(filter(None, (family.buffers, head.replace(".", r"\.") if model.tied_embedding else "")))
    tensors.check({entry.name: entry.shape for entry in entries}, ignored)
    flat = {path: np.zeros(shape.shape, np.float32) for path, shape in _flat(decoder.abstract(model)).items()}
    for entry in entries:
        for path, part in zip(entry.ours, _to_ours(tensors.read(entry.name), entry, sizes), strict=True):
            if family.plus_one and path.endswith(".gain"):
                part = part + np.float32(1)
            if scaled_by_layer and entry.layer is not None and path.startswith(f"{decoder.STACK}.attention.query"):
                part = part / np.float32(entry.layer + 1)
            ours = flat[path] if entry.layer is None else flat[path][entry.layer]
            ours[tuple(slice(size) for size in part.shape)] = part
    twice = model.tied_embedding and head in tensors.names
    if twice and not np.array_equal(tensors.read(head), flat["tokens"][: model.vocab_size]):
        raise ValueError(
            f"{tensors.folder}: {head} differs from {tokens} although tie_word_embeddings is true in config.json; "
            f"set it to false there, or remove {head}"
        )
    return _nested(flat)


def to_tensors(model: cfg.Model, family: Family, params: decoder.Params) -> Iterator[tuple[str, np.ndarray]]:
    """Their tensors with whole names, one at a time, in float32, for our parameters; every parameter is in one.

    Raises:
        ValueError: the family has no tensor for a parameter.
    """
    flat, sizes = _flat(params), _sizes(model)
    for entry in _tensors(model, family):
        parts = []
        for path in entry.ours:
            part = np.asarray(flat[path] if entry.layer is None else flat[path][entry.layer], np.float32)
            part = part[: model.vocab_size] if _axes(path)[0] == "V" else part
            parts.append(part - np.float32(1) if family.plus_one and path.endswith(".gain") else part)
        prefix = "" if entry.ours[0] in _HEAD else family.prefix
        yield prefix + entry.name, _to_theirs(parts, entry, sizes)


def shapes(model: cfg.Model, family: Family) -> dict[str, tuple[int, ...]]:
    """Their tensors' shapes, by names without the prefix."""
    return {entry.name: entry.shape for entry in _tensors(model, family)}


def _tensors(model: cfg.Model, family: Family) -> Iterator[_Tensor]:
    """All tensors of a model, in the order of the table; the table accounts for every parameter."""
    wanted, sizes = set(_flat(decoder.abstract(model))), _sizes(model)
    found = []
    for table, stack, layers in ((family.outside, "", 1), (family.inside, f"{decoder.STACK}.", model.num_layers)):
        for layer in range(layers):
            for name, (parts, layout) in table.items():
                ours = tuple(stack + part for part in parts.split())
                if ours[0] in wanted:
                    name = f"{family.layers}{layer}.{name}" if stack else name
                    shape = tuple(math.prod(sizes[axis] for axis in group) for group in layout.split())
                    found.append(_Tensor(name, ours, layer if stack else None, layout, shape))
    if missing := wanted - {path for tensor in found for path in tensor.ours}:
        raise ValueError(f"Hugging Face's {family.model_type} has no tensor for the parameter {min(missing)}")
    return iter(found)


def _sizes(model: cfg.Model) -> dict[str, int]:
    rows = model.position_offset + model.context_length
    return {
        "3": 3, "D": model.d_model, "F": model.d_ff, "H": model.num_heads, "K": model.d_head, "N": model.kv_heads,
        "P": rows, "V": model.vocab_size, "W": model.d_embedding,
    }  # fmt: skip


def _axes(path: str) -> str:
    return AXES[path.removeprefix(f"{decoder.STACK}.")]


def _order(entry: _Tensor) -> tuple[str, list[int]]:
    """Axes of the parameters put into one array, and for each axis of theirs its place among these."""
    axes = ("3" if len(entry.ours) > 1 else "") + _axes(entry.ours[0])
    return axes, [axes.index(axis) for axis in entry.layout.replace(" ", "")]


def _to_ours(tensor: np.ndarray, entry: _Tensor, sizes: Mapping[str, int]) -> list[np.ndarray]:
    axes, order = _order(entry)
    whole = tensor.reshape([sizes[axes[place]] for place in order]).transpose(np.argsort(order))
    return list(whole) if len(entry.ours) > 1 else [whole]


def _to_theirs(parts: list[np.ndarray], entry: _Tensor, sizes: Mapping[str, int]) -> np.ndarray:
    whole = np.stack(parts) if len(parts) > 1 else parts[0]
    return np.ascontiguousarray(whole.transpose(_order(entry)[1]).reshape(entry.shape))


def _name_of(family: Family, ours: str) -> str:
    return next(name for name, (parts, _) in family.outside.items() if parts == ours)


def _flat(tree: Any) -> dict[str, Any]:
    return {".".join(key.key for key in path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _nested(flat: Mapping[str, Any]) -> decoder.Params:
    tree: decoder.Params = {}
    for path, value in flat.items():
        *inner, last = path.split(".")
        node = tree
        for key in inner:
            node = node.setdefault(key, {})
        node[last] = value
    return tree
