"""The safetensors of a folder in Hugging Face's layout: one file, or an index and its shards.

Pickled weights (``pytorch_model.bin``) can run code when they are read, and are refused.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from scaling import json_text

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


class Place(NamedTuple):
    """Where a tensor lies: its file, its name there, its type in the file's words, its shape, and its first byte."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int


class TensorFolder:
    """The tensors of a folder by name, read one at a time; a context manager."""

    def __init__(self, folder: Path, prefix: str, respelled: Mapping[str, str] | None = None):
        """See the class.

        Args:
            folder: see there.
            prefix: left out of names that have it, or only its last part: bare models lack the first.
            respelled: ends of names, to what they become.
        """
        self.folder = folder
        self.prefix, self._respelled = prefix, respelled or {}
        self.described = "config.json"  # by what the model is described
        self.names: dict[str, Place] = {}

    def __enter__(self) -> "TensorFolder":
        for path in self._paths():
            self._open(path)
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held open."""

    def _paths(self) -> list[Path]:
        if (self.folder / WEIGHTS).exists():
            return [self.folder / WEIGHTS]
        index = self.folder / INDEX
        if index.exists():
            try:
                values = json_text.parse(index.read_bytes(), str(index))
                shards = sorted({self.folder / name for name in values["weight_map"].values()})
            except (KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{index} is not an index of shards: it needs a JSON object 'weight_map'") from error
            for shard in shards:
                if not shard.exists():
                    raise FileNotFoundError(f"{shard} is missing, and {INDEX} names it")
            return shards
        if pickles := sorted(self.folder.glob("pytorch_model*.bin")):
            raise FileNotFoundError(
                f"{self.folder} has only {pickles[0].name}, a pickle that could run code when read; convert it to "
                f"{WEIGHTS} with transformers' save_pretrained"
            )
        raise FileNotFoundError(f"{self.folder} has neither {WEIGHTS} nor {INDEX}")

    def _open(self, path: Path) -> None:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder; it must be a file of tensors")
        for place in _places(path):
            last = self.prefix.partition(".")[2]
            short = place.name.removeprefix(self.prefix if place.name.startswith(self.prefix) else last)
            for old, new in self._respelled.items():
                short = short.removesuffix(old) + new if short.endswith(old) else short
            if short in self.names:
                raise ValueError(
                    f"{path}: tensor {place.name} is there twice, in another file or without {self.prefix!r}"
                )
            self.names[short] = place

    def check(self, expected: Mapping[str, tuple[int, ...]], ignored: str) -> None:
        """Refuses a folder whose tensors are not those expected.

        Args:
            expected: shape by name.
            ignored: regular expression of other names that may be there.

        Raises:
            ValueError: naming tensors that are missing, unknown, or of the wrong shape or type.
        """
        extra = [n for n in self.names if n not in expected and not re.fullmatch(ignored, n)]
        for what, names in (("lacks", [n for n in expected if n not in self.names]), ("has unknown", extra)):
            if names:
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                raise ValueError(
                    f"{self.folder} {what} tensors for the model in its {self.described}: {', '.join(names[:3])}{more}"
                )
        for name, shape in expected.items():
            place = self.names[name]
            if place.shape != shape:
                raise ValueError(
                    f"{self.folder}: tensor {place.name} has shape {list(place.shape)}; by its {self.described} it "
                    f"must be {list(shape)}"
                )
            if place.dtype not in _DTYPES:
                raise ValueError(
                    f"{self.folder}: tensor {place.name} is {place.dtype}; must be one of {', '.join(_DTYPES)}"
                )

    def read(self, name: str) -> np.ndarray:
        """One tensor as float32, which holds every value of the half-precision types exactly.

        Raises:
            ValueError: it holds NaN or infinity, with which every output would be NaN.
        """
        place = self.names[name]
        tensor = self._numbers(name)
        if bad := tensor.size - np.count_nonzero(np.isfinite(tensor)):
            raise ValueError(
                f"{self.folder}: {bad} of the {tensor.size} numbers of tensor {place.name} are NaN or infinite"
            )
        return tensor

    def _numbers(self, name: str) -> np.ndarray:
        place = self.names[name]
        # Read and not mapped: pages of a mapped file would count as memory of this process.
        numbers = np.fromfile(place.path, _DTYPES[place.dtype], math.prod(place.shape), offset=place.start)
        return numbers.astype(np.float32, copy=False).reshape(place.shape)


def _places(path: Path) -> list[Place]:
    """The tensors of a file: its first eight bytes are the length of the JSON that says where, after it, each lies."""
    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass  # it checks the header, and that the file is as long as that says
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return [
        Place(path, name, each["dtype"], tuple(each["shape"]), 8 + length + each["data_offsets"][0])
        for name, each in header.items()
    ]
