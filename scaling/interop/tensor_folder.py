"""The safetensors of a folder in Hugging Face's layout: one file, or an index and its shards.

Pickled weights (``pytorch_model.bin``) can run code when they are read, and are refused.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from scaling import json_text

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_DTYPES = ("F32", "F16", "BF16")


class TensorFolder:
    """The tensors of a folder by name, read one at a time; a context manager that holds their files open."""

    def __init__(self, folder: Path, prefix: str):
        """``prefix`` is left out of names that have it, or only its last part: bare models lack the first."""
        self.folder = folder
        self.prefix = prefix
        self.described = "config.json"  # by what the model is described
        self.names: dict[str, tuple[Any, str]] = {}  # to (open file, name in it)
        self._files: list[Any] = []

    def __enter__(self) -> "TensorFolder":
        try:
            for path in self._paths():
                self._open(path)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.__exit__(None, None, None)

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
        try:
            file = safetensors.safe_open(path, framework="numpy")
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
        self._files.append(file.__enter__())
        for name in file.keys():  # noqa: SIM118 - not a dict
            last = self.prefix.partition(".")[2]
            short = name.removeprefix(self.prefix if name.startswith(self.prefix) else last)
            if short in self.names:
                raise ValueError(f"{path}: tensor {name} is there twice, in another file or without {self.prefix!r}")
            self.names[short] = (file, name)

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
            file, full = self.names[name]
            view = file.get_slice(full)
            found = tuple(view.get_shape())
            if found != shape:
                right = f"by its {self.described} it must be {list(shape)}"
                raise ValueError(f"{self.folder}: tensor {full} has shape {list(found)}; {right}")
            if view.get_dtype() not in _DTYPES:
                raise ValueError(
                    f"{self.folder}: tensor {full} is {view.get_dtype()}; must be one of {', '.join(_DTYPES)}"
                )

    def read(self, name: str) -> np.ndarray:
        """One tensor as float32, which holds every value of the half-precision types exactly.

        Raises:
            ValueError: it holds NaN or infinity, with which every output would be NaN.
        """
        file, full = self.names[name]
        tensor = file.get_tensor(full).astype(np.float32)
        if bad := tensor.size - np.count_nonzero(np.isfinite(tensor)):
            raise ValueError(f"{self.folder}: {bad} of the {tensor.size} numbers of tensor {full} are NaN or infinite")
        return tensor
