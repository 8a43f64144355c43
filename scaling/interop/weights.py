"""Between the tensors of a Hugging Face folder and our parameters, both ways, by the tables of ``interop/families``.

Conversion renames, cuts, stacks and turns axes, and is exact. Norms that store their gain less 1, and scores divided by
the number of the layer, are folded into our weights when they are read.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from scaling.config import schema as cfg
from scaling.interop.family import Family
from scaling.interop.tensor_folder import TensorFolder
from scaling.model import decoder
from scaling.model.stack import layers_of
from scaling.runs.stores import Later, by_path

# Axes of our parameters: B buckets of distances, D and Q model, E experts, F MLP, H heads, K features of a head,
# N heads of keys, O one number, P positions, R rows of distances, S width in which embeddings are added, T types of
# tokens, V tokens (ours have padded_vocab, theirs vocab_size), W width of the embedding, X MLP of an expert.
AXES = {
    "tokens": "VW",
    "positions": "PS",
    "types": "TS",
    "query_embedding": "D",
    "relative": "BH",
    "distances": "RD",
    "project_in": "WD",
    "project_in_bias": "D",
    "project_out": "DW",
    "unembedding": "VW",
    "logit_bias": "V",
    "transform": "DW",
    "transform_bias": "W",
    "transform_norm.gain": "W",
    "transform_norm.bias": "W",
    "pooler": "DQ",
    "pooler_bias": "Q",
    "pair_head": "D2",
    "pair_bias": "2",
    "discriminator": "DQ",
    "discriminator_bias": "Q",
    "replaced_head": "DO",
    "replaced_bias": "O",
    "attention.query": "DHK",
    "attention.key": "DNK",
    "attention.value": "DNK",
    "attention.query_bias": "HK",
    "attention.key_bias": "NK",
    "attention.value_bias": "NK",
    "attention.distances.query": "DHK",
    "attention.distances.key": "DHK",
    "attention.distances.query_bias": "HK",
    "attention.distances.key_bias": "HK",
    "attention.query_norm.gain": "K",
    "attention.key_norm.gain": "K",
    "attention.out": "HKD",
    "attention.out_bias": "D",
    "attention.relative.position": "DHK",
    "attention.relative.content_bias": "HK",
    "attention.relative.position_bias": "HK",
    "attention.relative.type_bias": "HK",
    "attention.relative.types": "2HK",
    "mlp.up": "DF",
    "mlp.gate": "DF",
    "mlp.down": "FD",
    "mlp.up_bias": "F",
    "mlp.gate_bias": "F",
    "mlp.down_bias": "D",
    "experts.router": "DE",
    "experts.up": "EDX",
    "experts.gate": "EDX",
    "experts.down": "EXD",
    "embedding_norm.gain": "S",
    "embedding_norm.bias": "S",
} | {
    f"{norm}.{part}": "D"
    for norm in ("attention_norm", "cross_norm", "mlp_norm", "final_norm", "distances_norm")
    for part in ("gain", "bias")
}  # fmt: skip
AXES |= {
    f"cross.{name.removeprefix('attention.')}": axes for name, axes in AXES.items() if name.startswith("attention.")
}
_GATES = "{_1}"  # in a name, "_1" where the MLP has gates
_ENCODER = "encoder."  # before the paths of an encoder's parameters
_EXPERT = "{e}"  # in a name, the expert's number
_LAYER = "{n}"  # in a name, the layer's number, where it is not at the front
# Outside of what bare models have, so without the prefix.
_HEAD = (
    "unembedding", "logit_bias", "transform", "transform_bias", "transform_norm.gain", "transform_norm.bias",
    "pair_head", "pair_bias", "discriminator", "discriminator_bias", "replaced_head", "replaced_bias",
)  # fmt: skip


class Tensor(NamedTuple):
    """A tensor of theirs.

    Attributes:
        name: without the prefix.
        ours: paths of the parameters that it holds, joined by dots.
        place: its index in each of them: none outside of the layers, else the layer's number in its stack, and of a
            tensor for one expert also the expert's.
        layer: its number in the model; None outside of the layers.
        layout: as in ``Family``.
        shape: as the model's sizes make it.
    """

    name: str
    ours: tuple[str, ...]
    place: tuple[int, ...]
    layer: int | None
    layout: str
    shape: tuple[int, ...]


class FolderWeights:
    """The parameters of a model in the tensors of a folder, which are read one at a time."""

    def __init__(self, model: cfg.Model, family: Family, tensors: TensorFolder, scaled_by_layer: bool):
        """Checks that there is a tensor for every parameter, and that every tensor is used; reads none.

        Args:
            model: resolved.
            family: its table.
            tensors: of the folder.
            scaled_by_layer: scores are divided by the number of the layer.

        Raises:
            ValueError: tensors that are missing, unknown or misshapen.
        """
        self.model, self._family, self._tensors, self._scaled_by_layer = model, family, tensors, scaled_by_layer
        self._head, self._tokens = (_name_of(family, part) for part in ("unembedding", "tokens"))
        if model.tied_embedding and self._tokens not in tensors.names and self._head in tensors.names:
            tensors.names[self._tokens] = tensors.names.pop(self._head)  # some tools write the shared one once, so
        self._entries = _tensors(model, family, family.inside)
        if family.inside_too:
            too = _tensors(model, family, family.inside_too)
            if ({entry.name for entry in too} - {entry.name for entry in self._entries}) & tensors.names.keys():
                self._entries = too
        tied = self._head.replace(".", r"\.") if model.tied_embedding else ""
        expected = {entry.name: entry.shape for entry in self._entries}
        tensors.check(expected, "|".join(filter(None, (family.buffers, tied))))

    def fill(self, params: Mapping[str, Any]) -> None:
        """Writes each tensor into its place, once.

        Args:
            params: by paths joined with dots, float32 arrays of the shapes of ``decoder.abstract``, or what is assigned
                to like these.

        Raises:
            ValueError: numbers that are not finite, or a tied head that differs.
        """
        family, sizes = self._family, _sizes(self.model)
        if self.model.tied_embedding and self._head in self._tensors.names:
            self._check_tied()
        for entry in self._entries:
            for path, part in zip(entry.ours, _to_ours(self._tensors.read(entry.name), entry, sizes), strict=True):
                if family.plus_one and path.endswith(".gain"):
                    part = part + np.float32(1)
                if self._scaled_by_layer and entry.layer is not None and ".attention.query" in path:
                    part = part / np.float32(entry.layer + 1)
                array = params[path]
                array[entry.place] = _padded(part, array.shape[len(entry.place) :])

    def read(self) -> decoder.Params:
        """All parameters in the layout of ``decoder.abstract``, float32 NumPy arrays; raises what ``fill`` does."""
        params = {
            path: np.empty(leaf.shape, np.float32) for path, leaf in by_path(decoder.abstract(self.model)).items()
        }
        self.fill(params)
        return nested(params)

    def _check_tied(self) -> None:
        if not np.array_equal(self._tensors.read(self._head), self._tensors.read(self._tokens)):
            raise ValueError(
                f"{self._tensors.folder}: {self._head} differs from {self._tokens} although tie_word_embeddings is "
                f"true in config.json; set it to false there, or remove {self._head}"
            )


def to_tensors(model: cfg.Model, family: Family, params: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Their tensors with whole names, one at a time, in float32, for our parameters; every parameter is in one.

    Tensors that are made of the same parameters come together, so that these can be let go.

    Args:
        model: resolved.
        family: its table.
        params: by paths joined with dots, arrays, or what is sliced like these: then as many layers are read at once as
            its ``rows_at_once`` says.

    Raises:
        ValueError: the family has no tensor for a parameter.
    """
    groups: dict[tuple[str, ...], list[Tensor]] = {}
    for entry in _tensors(model, family, family.inside):
        groups.setdefault(entry.ours, []).append(entry)
    for ours, entries in groups.items():
        for first, block in _blocks([params[path] for path in ours], whole=not entries[0].place):
            for entry in entries:
                place = (entry.place[0] - first, *entry.place[1:]) if entry.place else ()
                if not place or 0 <= place[0] < len(block[0]):
                    tensor = _to_theirs([array[place] for array in block], entry, model, family)
                    yield _whole_name(family, entry), tensor
                    del tensor
            del block  # before the next one is read


def _blocks(arrays: list[Any], whole: bool) -> Iterator[tuple[int, list[np.ndarray]]]:
    """The same rows of several arrays in float32, with the number of the first row."""
    count = len(arrays[0])
    at_once = count if whole else max(getattr(array, "rows_at_once", count) for array in arrays)
    for first in range(0, count, at_once):
        yield first, [np.asarray(array[first : first + at_once], np.float32) for array in arrays]


def stored(model: cfg.Model) -> decoder.Params:
    """How a checkpoint holds the parameters so that tensors can be written one by one: each layer and expert apart."""
    found = {}
    for path, leaf in by_path(decoder.abstract(model)).items():
        stack, _, part = path.removeprefix(_ENCODER).partition(".")
        apart = (1 + AXES[part].startswith("E")) if stack in decoder.STACKS else 0
        found[path] = Later(leaf.shape, (1,) * apart + leaf.shape[apart:])
    return nested(found)


def shapes(model: cfg.Model, family: Family) -> dict[str, tuple[int, ...]]:
    """The shapes of what ``to_tensors`` makes, by whole names, layer by layer."""
    return {_whole_name(family, entry): entry.shape for entry in _tensors(model, family, family.inside)}


def layer_tensors(model: cfg.Model, family: Family) -> list[Tensor]:
    """The tensors of the layers, as the table says of them."""
    return [entry for entry in _tensors(model, family, family.inside) if entry.layer is not None]


def _whole_name(family: Family, entry: Tensor) -> str:
    return entry.name if entry.ours[0] in _HEAD else family.prefix + entry.name


def _tensors(model: cfg.Model, family: Family, inside: Mapping[str, tuple[str, str]]) -> list[Tensor]:
    """All tensors of a model, in the order of the tables; these account for every parameter."""
    wanted, sizes = set(by_path(decoder.abstract(model))), _sizes(model)
    found: list[Tensor] = []

    def add(
        table: Mapping[str, tuple[str, str]], layer: int | None, stack: str, place: tuple[int, ...], before: str = ""
    ) -> None:
        for name, (parts, layout) in table.items():
            ours = tuple(stack + part for part in parts.split())
            if ours[0] not in wanted:
                continue
            shape = tuple(math.prod(sizes[axis] for axis in group) for group in layout.split())
            whole = name if layer is None else f"{before}{layer}.{name}" if before else name.replace(_LAYER, str(layer))
            whole = whole.replace(_GATES, "_1" if model.gated else "")
            for expert in range(model.experts.count) if _EXPERT in name else (None,):
                index = place if expert is None else (*place, expert)
                found.append(Tensor(whole.replace(_EXPERT, str(expert)), ours, index, layer, layout, shape))

    add(family.outside, None, "", ())
    places = {layer: (stack, place) for stack, layers in layers_of(model).items() for place, layer in enumerate(layers)}
    for layer, (stack, place) in sorted(places.items()):
        add(inside, layer, f"{stack}.", (place,), family.layers)
    for layer in range(model.encoder_layers):
        add(family.inside_encoder, layer, f"{_ENCODER}{decoder.STACK}.", (layer,), family.encoder_layers)
    if missing := wanted - {path for tensor in found for path in tensor.ours}:
        raise ValueError(f"Hugging Face's {family.model_type} has no tensor for the parameter {min(missing)}")
    return found


def _sizes(model: cfg.Model) -> dict[str, int]:
    return {
        "1": 1, "2": 2, "3": 3, "B": model.relative_buckets, "D": model.d_model, "E": model.experts.count,
        "F": model.d_ff, "H": model.num_heads, "K": model.d_head, "N": model.kv_heads, "O": 1,
        "P": model.position_offset + model.context_length, "Q": model.d_model, "R": 2 * model.distances,
        "S": model.d_summed, "T": model.token_types, "V": model.vocab_size, "W": model.d_embedding, "X": model.d_expert,
    }  # fmt: skip


def _axes(entry: Tensor) -> str:
    """Axes of the parameters that a tensor holds, or of its part of them."""
    first = entry.ours[0].removeprefix(_ENCODER)
    if entry.layer is None:
        return AXES[first]
    return AXES[first.partition(".")[2]][len(entry.place) - 1 :]  # without the axes that the place is on


def _order(entry: Tensor) -> tuple[str, list[int]]:
    """Axes of the parameters put into one array, and for each axis of theirs its place among these."""
    axes = (str(len(entry.ours)) if len(entry.ours) > 1 else "") + _axes(entry)
    return axes, [axes.index(axis) for axis in entry.layout if axis not in " 1"]


def _to_ours(tensor: np.ndarray, entry: Tensor, sizes: Mapping[str, int]) -> list[np.ndarray]:
    axes, order = _order(entry)
    whole = tensor.reshape([sizes[axes[place]] for place in order]).transpose(np.argsort(order))
    return list(whole) if len(entry.ours) > 1 else [whole]


def _padded(part: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """With zeros at the end, where the embedding has rows that belong to no token."""
    if part.shape == shape:
        return part
    return np.pad(part, [(0, size - own) for size, own in zip(shape, part.shape, strict=True)])


def _to_theirs(parts: list[np.ndarray], entry: Tensor, model: cfg.Model, family: Family) -> np.ndarray:
    if _axes(entry)[0] == "V":
        parts = [part[: model.vocab_size] for part in parts]
    if family.plus_one and entry.ours[0].endswith(".gain"):
        parts = [part - np.float32(1) for part in parts]
    whole = np.stack(parts) if len(parts) > 1 else parts[0]
    return np.ascontiguousarray(whole.transpose(_order(entry)[1]).reshape(entry.shape))


def _name_of(family: Family, ours: str) -> str:
    return next(name for name, (parts, _) in family.outside.items() if parts == ours)


def nested(flat: Mapping[str, Any]) -> decoder.Params:
    """The reverse of ``by_path``."""
    tree: decoder.Params = {}
    for path, value in flat.items():
        *inner, last = path.split(".")
        node = tree
        for key in inner:
            node = node.setdefault(key, {})
        node[last] = value
    return tree
