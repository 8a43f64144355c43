"""Files of safetensors, written a tensor at a time in any order; so not even one file must fit the memory.

The format: eight bytes say how long the JSON is that follows; it says where, after it, each tensor lies.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from scaling.interop.tensor_folder import INDEX, WEIGHTS

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def write(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[tuple[str, np.ndarray]],
    dtype: str,
    limit: float,
) -> None:
    """Writes one file, or shards and an index.

    Args:
        folder: exists.
        shapes: of all tensors, by name; files hold them in this order.
        tensors: the same ones in any order, float32.
        dtype: of the files, a key of ``DTYPES``.
        limit: bytes of tensors in a file, if it holds more than one tensor.

    Raises:
        ValueError: a number that the type cannot hold.
        OSError: a file cannot be written.
    """
    sizes = {name: math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize for name, shape in shapes.items()}
    shards = _shards(sizes, limit)
    names = [WEIGHTS] if len(shards) == 1 else [f"model-{i:05d}-of-{len(shards):05d}.safetensors"
                                               for i in range(1, len(shards) + 1)]  # fmt: skip
    where: dict[str, tuple[Path, int]] = {}
    for file, shard in zip(names, shards, strict=True):
        start = _begin(folder / file, shard, shapes, sizes, _NAMES[dtype])
        for name in shard:
            where[name] = folder / file, start
            start += sizes[name]
    left = set(shapes)
    for name, tensor in tensors:
        path, start = where[name]
        assert tensor.shape == shapes[name], name
        with path.open("r+b") as opened:
            opened.seek(start)
            opened.write(_narrowed(name, tensor, dtype).reshape(-1).view(np.uint8).data)
        left.remove(name)
        del tensor  # before the next one is made
    assert not left, left
    if len(names) > 1:
        files = {tensor: path.name for tensor, (path, _) in where.items()}
        index: Mapping[str, Any] = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": files}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _shards(sizes: Mapping[str, int], limit: float) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _begin(
    path: Path, names: list[str], shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int], dtype: str
) -> int:
    """Writes what comes before the tensors, and makes the file as long as it will be; where the first tensor begins."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses files without it
    end = 0
    for name in names:
        header[name] = {"dtype": dtype, "shape": shapes[name], "data_offsets": [end, end := end + sizes[name]]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(file.tell() + end)
        return file.tell()


def _narrowed(name: str, tensor: np.ndarray, dtype: str) -> np.ndarray:
    """The tensor in another type, contiguous."""
    if dtype == "float32":
        return np.ascontiguousarray(tensor)
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(tensor.astype(DTYPES[dtype]))
    largest = float(np.abs(tensor).max(initial=0))
    if math.isfinite(largest) and not np.isfinite(narrow.astype(np.float32)).all():
        raise ValueError(f"{dtype} cannot hold {largest:g}, which tensor {name} has; export as bfloat16 or float32")
    return narrow
