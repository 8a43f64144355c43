"""Queries, keys and values in one array: so GPT-2's folders hold them, and so did our checkpoints of format 1."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

_PARTS = ("query", "key", "value")


def fused(tree: Any) -> Any:
    """A tree in which each attention's three matrices [..., D, H, K] are one, ``qkv`` [..., D, 3, H, K]; biases, too.

    Args:
        tree: parameters, or anything that has trees of their structure in it, such as an optimizer's state: arrays,
            shapes with shardings, or logical axes.
    """
    return jax.tree.map(lambda x: _fuse(x) if _is_apart(x) else x, tree, is_leaf=_is_apart)


def apart(tree: Any) -> Any:
    """The reverse of ``fused``, of arrays."""
    return jax.tree.map(lambda x: _split(x) if _is_fused(x) else x, tree, is_leaf=_is_fused)


def _is_apart(x: Any) -> bool:
    return isinstance(x, dict) and "query" in x and "out" in x


def _is_fused(x: Any) -> bool:
    return isinstance(x, dict) and "qkv" in x


def _fuse(attention: dict[str, Any]) -> dict[str, Any]:
    rest = {name: x for name, x in attention.items() if name.removesuffix("_bias") not in _PARTS}
    ends = ("", "_bias") if "query_bias" in attention else ("",)
    return rest | {f"qkv{end}": stacked([attention[part + end] for part in _PARTS]) for end in ends}


def stacked(parts: Sequence[Any]) -> Any:
    """Arrays [..., H, K], their shapes with shardings, or their logical axes, as of one [..., n, H, K]."""
    first = parts[0]
    if isinstance(first, tuple):
        return (*first[:-2], None, *first[-2:])
    if not isinstance(first, jax.ShapeDtypeStruct):
        return (jnp if isinstance(first, jax.Array) else np).stack(parts, axis=-3)
    shape, where = (*first.shape[:-2], 3, *first.shape[-2:]), first.sharding
    if isinstance(where, NamedSharding):
        spec = (*where.spec, *[None] * (len(first.shape) - len(where.spec)))
        where = NamedSharding(where.mesh, P(*spec[:-2], None, *spec[-2:]))
    return jax.ShapeDtypeStruct(shape, first.dtype, sharding=where)


def _split(attention: dict[str, Any]) -> dict[str, Any]:
    found = {name: x for name, x in attention.items() if not name.startswith("qkv")}
    for end in ("", "_bias") if "qkv_bias" in attention else ("",):
        found |= {part + end: attention[f"qkv{end}"][..., i, :, :] for i, part in enumerate(_PARTS)}
    return found
