"""GGUF files of llama.cpp, read through the package ``gguf`` as if they were a folder of Hugging Face.

A file gives a config.json, a tokenizer's files and named tensors; all else is done by ``config_keys`` and ``weights``.
The file is memory-mapped, and one tensor at a time becomes float32, exactly as the package unpacks its type.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scaling.config import schema as cfg
from scaling.interop import config_keys, gguf_rope, gguf_tokenizer, weights
from scaling.interop.families import FAMILIES
from scaling.interop.family import Family
from scaling.interop.gguf_tables import ARCHITECTURES, KINDS, ONLY, ROPE_SCALING, UNUSED, check_kind, stored
from scaling.interop.tensor_folder import Place, TensorFolder

_MAGIC = b"GGUF"
_HEAD, _TOKENS, _FREQUENCIES = "output.weight", "token_embd.weight", "rope_freqs.weight"
# The model's switches that a file shows only by having a tensor.
_SHOWN_BY = {"attention_bias": ("attn_q.bias", "attn_qkv.bias"), "mlp_bias": ("ffn_up.bias",)}


def opened(path: str | os.PathLike[str], vocab_multiple: int = 1) -> weights.FolderWeights:
    """The model of a GGUF file, with parameters that are not read yet; arguments as of ``huggingface.opened``."""
    file = GgufFile(path)
    model, family = file.model(vocab_multiple)
    family = stored(family, file.architecture)
    return weights.FolderWeights(model, family, GgufTensors(file, model, family), scaled_by_layer=False)


@contextlib.contextmanager
def small_files(path: str | os.PathLike[str], with_tokenizer: bool) -> Iterator[Path]:
    """A folder, for a while, with the files that lie beside the weights in a folder of Hugging Face.

    Args:
        path: of the GGUF file.
        with_tokenizer: whether the tokenizer is wanted.

    Raises:
        ValueError: as ``GgufFile`` and ``gguf_tokenizer.files``.
    """
    file = GgufFile(path)
    file.model(1)
    values = file.values()
    files = {"config.json": json.dumps(values, indent=2).encode()}
    if with_tokenizer:
        files |= gguf_tokenizer.files(file.metadata, str(path), values["vocab_size"])
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        yield Path(folder)


class GgufFile:
    """An open GGUF file.

    Attributes:
        path: of the file.
        metadata: values by name; float32 numbers are the shortest decimal ones.
        architecture: its table.
        tensors: the package's records by name.

    Raises:
        ValueError: not a GGUF file, cut short, one part of several, no model, or an architecture we do not have.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.metadata, self.tensors = _read(self.path)
        name = self.metadata.get("general.architecture")
        if not isinstance(name, str) or name not in ARCHITECTURES:
            raise ValueError(
                f"{path}: general.architecture={name!r} is not supported; must be one of {', '.join(ARCHITECTURES)}"
            )
        self.name = name
        self.architecture = ARCHITECTURES[self.name]
        self._check_kinds()
        if (kind := self.metadata.get("general.type", "model")) != "model":
            raise ValueError(f"{path} holds no whole model: general.type is {kind!r}")
        if (parts := self.metadata.get("split.count", 1)) > 1:
            raise ValueError(f"{path} is one of {parts} parts of a model; join them with llama-gguf-split --merge")
        if _TOKENS not in self.tensors:
            raise ValueError(f"{path} lacks the tensor {_TOKENS}")
        if len(shape := [int(size) for size in reversed(self.tensors[_TOKENS].shape)]) != 2:
            raise ValueError(f"{path}: tensor {_TOKENS} has the shape {shape}; must be [tokens, features]")

    def _check_kinds(self) -> None:
        for name, kind in KINDS.items():
            if name in self.metadata:
                check_kind(name, self.metadata[name], kind, str(self.path))
        for key in {*self.architecture.keys, "rope.dimension_count"}:
            if (value := self.get(key)) is not None:
                kind = bool if key.startswith("use_") else float
                check_kind(f"{self.name}.{key}", value, kind, str(self.path))

    def get(self, key: str) -> Any:
        """The metadata of the architecture; a list of the same value for every layer is that value."""
        value = self.metadata.get(f"{self.name}.{key}")
        return value[0] if isinstance(value, list) and value and value == value[:1] * len(value) else value

    def model(self, vocab_multiple: int) -> tuple[cfg.Model, Family]:
        """The model that the file describes, and its family; as ``config_keys.to_model``.

        Raises:
            ValueError: metadata that changes numbers and is not known, or that contradicts itself.
        """
        try:
            model, family = config_keys.to_model(self.values(), str(self.path), vocab_multiple)
        except ValueError as error:
            raise ValueError(self._in_its_names(str(error))) from None
        same = {
            "feed_forward_length": model.d_ff,
            "vocab_size": model.vocab_size,
            "attention.head_count_kv": model.kv_heads,
            "attention.key_length": model.d_head,
            "attention.value_length": model.d_head,
            "rope.dimension_count": model.rotary.dim or model.d_head,
        }
        known = {*self.architecture.keys, *same, *ONLY, *ROPE_SCALING, *UNUSED}
        for name in self.metadata:
            key = name.removeprefix(f"{self.name}.")
            if key != name and key not in known:
                raise ValueError(
                    f"{self.path}: {name}={self.metadata[name]!r} is not known here, and may change the numbers"
                )
        for key, right in (ONLY | same).items():
            found = self.get(key)
            if found is not None and found != right:
                raise ValueError(f"{self.path}: {self.name}.{key}={found!r} is not supported; must be {right!r}")
        return model, family

    def values(self) -> dict[str, Any]:
        """What config.json would say."""
        architecture, family = self.architecture, FAMILIES[self.architecture.model_type]
        values: dict[str, Any] = {"model_type": architecture.model_type, "architectures": [family.class_name]}
        for key, theirs in architecture.keys.items():
            if (value := self.get(key)) is not None:
                values[theirs] = value
        if "attention.head_count_kv" in architecture.keys:
            values.setdefault("num_key_value_heads", self.get("attention.head_count"))
        values |= architecture.fixed
        values["vocab_size"] = int(self.tensors[_TOKENS].shape[-1])
        values["tie_word_embeddings"] = self._is_tied()
        keys = {key.theirs for key in family.keys}
        values |= {
            key: any(f"blk.0.{name}" in self.tensors for name in names)
            for key, names in _SHOWN_BY.items()
            if key in keys
        }
        for kind in ("bos", "eos", "pad"):
            long = {"pad": "padding"}.get(kind, kind)
            values[f"{kind}_token_id"] = self.metadata.get(f"tokenizer.ggml.{long}_token_id")
        return values | (self._rope(values, family) if family.rope else {})

    def _in_its_names(self, sentence: str) -> str:
        for key, theirs in self.architecture.keys.items():
            sentence = sentence.replace(theirs, f"{self.name}.{key}")
        return sentence

    def _is_tied(self) -> bool:
        """Whether the head is the embedding: left out, or the same bytes."""
        head, tokens = self.tensors.get(_HEAD), self.tensors[_TOKENS]
        if head is None:
            return True
        return head.tensor_type == tokens.tensor_type and np.array_equal(head.data, tokens.data)

    def _rope(self, values: Mapping[str, Any], family: Family) -> dict[str, Any]:
        assert family.rope
        found: dict[str, Any] = {}
        width, whole = self.get("rope.dimension_count"), self._head_width(values)
        if family.rope.default_fraction != 1 and width and whole:
            found[family.rope.fraction] = width / whole
        scaling = {theirs: value for key, theirs in ROPE_SCALING.items() if (value := self.get(key)) is not None}
        if scaling.get("rope_type", "none") == "none":
            scaling = {}
        if _FREQUENCIES in self.tensors:
            if scaling:
                raise ValueError(
                    f"{self.path} has both rope.scaling.type and {_FREQUENCIES}, which contradict each other"
                )
            factors = self.tensors[_FREQUENCIES].data
            partial = width if family.rope.default_fraction != 1 else None
            count = (partial or self.get("attention.key_length") or whole or 2 * factors.size) // 2
            if factors.shape != (count,) or not (np.isfinite(factors) & (factors > 0)).all():
                raise ValueError(
                    f"{self.path}: tensor {_FREQUENCIES} of shape {list(factors.shape)} must hold {count} factors, "
                    "each finite and more than 0"
                )
            scaling = gguf_rope.of_factors(factors, values.get("rope_theta", 10_000.0), str(self.path))
        return found | ({"rope_scaling": scaling} if scaling else {})

    def _head_width(self, values: Mapping[str, Any]) -> int:
        heads = values.get("num_attention_heads")
        return values["hidden_size"] // heads if heads and "hidden_size" in values else 0


class GgufTensors(TensorFolder):
    """The tensors of a GGUF file by the names of Hugging Face."""

    def __init__(self, file: GgufFile, model: cfg.Model, family: Family) -> None:
        """``family`` has the layouts of the file."""
        import gguf

        super().__init__(file.path, family.prefix)
        self.described = "metadata"
        kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == file.name)
        places = gguf.get_tensor_name_map(kind, model.num_layers)
        left = dict(file.tensors)
        left.pop(_FREQUENCIES, None)
        turned = model.d_head if file.architecture.turned else 0
        self.missing: list[str] = []
        self._records: dict[str, tuple[Any, int]] = {}  # and features of a head whose rows are to be put back
        for whole in weights.shapes(model, family):
            stem, _, end = whole.rpartition(".")
            place = places.get_name(stem) or places.get_name(stem.removeprefix(family.prefix))
            theirs = f"{place}.{end}"
            if theirs in left:
                rows = turned if place and place.endswith((".attn_q", ".attn_k")) else 0
                self._add(whole.removeprefix(family.prefix), left.pop(theirs), rows)
            else:
                self.missing.append(theirs)
        # Others keep their own name, by which ``check`` refuses them; a head that repeats the embedding does not.
        if model.tied_embedding:
            left.pop(_HEAD, None)
        for name, tensor in left.items():
            self._add(name, tensor, 0)

    def _add(self, name: str, record: Any, turned: int) -> None:
        kind = record.tensor_type.name
        dtype = kind if kind.startswith(("I8", "I16", "I32", "I64", "F64")) else "F32"  # others are unpacked to this
        shape = tuple(int(size) for size in reversed(record.shape))
        self.names[name] = Place(self.folder, record.name, dtype, shape, record.data_offset)
        self._records[name] = record, turned

    def check(self, expected: Mapping[str, tuple[int, ...]], ignored: str) -> None:
        """See ``TensorFolder``; missing tensors are named as in the file."""
        if self.missing:
            more = f" and {len(self.missing) - 3} more" if len(self.missing) > 3 else ""
            raise ValueError(
                f"{self.folder} lacks tensors that its metadata asks for: {', '.join(self.missing[:3])}{more}"
            )
        super().check(expected, ignored)

    def _numbers(self, name: str) -> np.ndarray:
        import gguf

        record, turned = self._records[name]
        values = np.asarray(gguf.quants.dequantize(record.data, record.tensor_type), np.float32)
        if not turned:
            return values
        # A row 2i + j of a head is row i + j * half in the layout of halves.
        pairs = values.reshape(-1, turned // 2, 2, *values.shape[1:])
        return pairs.swapaxes(1, 2).reshape(values.shape)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata and tensors by name; the errors of ``GgufFile`` that concern the format."""
    with path.open("rb") as file:
        if file.read(4) != _MAGIC:
            raise ValueError(f"{path} is no GGUF file; `scaling import` reads a Hugging Face folder or a .gguf file")
    try:
        import gguf
    except ImportError as error:
        raise ValueError(f"{path}: reading it needs the package gguf: pip install 'scaling[hf]'") from error

    class Reader(gguf.GGUFReader):
        def _get(self, offset: int, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
            """Refuses what lies behind the end, for which the package gives an empty array."""
            if offset + np.dtype(dtype).itemsize * int(count) > self.data.size:
                raise ValueError("it ends before what it says it holds")
            return super()._get(offset, dtype, count, override_order)

    try:
        reader = Reader(path)
        metadata = {name: _value(field) for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    except (ValueError, IndexError, KeyError, OverflowError, TypeError, MemoryError) as error:
        raise ValueError(f"{path} is not a whole GGUF file, or of a version that is not known: {error}") from None
    if reader.byte_order == "S":
        raise ValueError(f"{path} is big-endian; convert it with gguf_convert_endian.py of llama.cpp")
    return metadata, {tensor.name: tensor for tensor in reader.tensors}


def _value(field: Any) -> Any:
    value = field.contents()
    return float(str(np.float32(value))) if isinstance(value, float) else value
