"""Which layers see only a window of the text: the ways in which config.json says so, read and written.

Everywhere a window counts the position itself, as ``band_width`` does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from scaling.config import schema as cfg

KEYS = {
    "none": (),
    "sliding_window": ("sliding_window",),
    "sliding_window_if_given": ("sliding_window",),
    "attention_types": ("attention_layers", "attention_types", "window_size"),
    "layer_types": ("layer_types", "use_sliding_window", "sliding_window", "max_window_layers"),
}
_DENSE = {"global": "dense", "local": "banded", "full_attention": "dense", "sliding_attention": "banded"}
_THEIRS = {
    "attention_types": {"dense": "global", "banded": "local"},
    "layer_types": {"dense": "full_attention", "banded": "sliding_attention"},
}


def read(kind: str, values: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """The knobs ``attention_pattern`` and ``band_width``.

    Args:
        kind: a key of ``KEYS``.
        values: of config.json.
        layers: their number.

    Raises:
        ValueError: a kind of attention that we do not have, or not one a layer.
    """
    if kind.startswith("sliding_window"):
        key = "sliding_window"
        width = values.get(key, 4096 if kind == key else None)
        return {} if width is None else {"attention_pattern": ("banded",), "band_width": _width(width, key)}
    if kind == "attention_types":
        types = values.get("attention_types") or [[["global", "local"], 12]]
        listed = values.get("attention_layers") or _expanded(types)
        return _pattern(listed, values.get("window_size", 256), layers, "attention_layers", "window_size")
    if kind == "layer_types":
        used = values.get("use_sliding_window")
        if used is not None and not isinstance(used, bool):
            raise ValueError(f"use_sliding_window must be true or false, got {used!r}")
        width = values.get("sliding_window", 4096) if used else None
        first = values.get("max_window_layers", 28)
        if isinstance(first, bool) or not isinstance(first, int):
            raise ValueError(f"max_window_layers must be a whole number, got {first!r}")
        from_first = ["full_attention" if width is None or i < first else "sliding_attention" for i in range(layers)]
        return _pattern(values.get("layer_types") or from_first, width, layers, "layer_types", "sliding_window")
    return {}


def write(kind: str, model: cfg.Model) -> dict[str, Any]:
    """The keys that say what ``read`` reads; of a model that the kind cannot express, whatever comes nearest."""
    pattern = [model.attention_pattern[i % len(model.attention_pattern)] for i in range(model.num_layers)]
    banded = "banded" in pattern
    if kind.startswith("sliding_window"):
        return {"sliding_window": model.band_width if banded else None}
    if kind == "attention_types":
        names = [_nearest(kind, name) for name in pattern]
        return {
            "attention_types": [[names, 1]],
            "attention_layers": names,
            "window_size": model.band_width if banded else 256,
        }
    if kind == "layer_types":
        return {
            "layer_types": [_nearest(kind, name) for name in pattern],
            "use_sliding_window": banded,
            "sliding_window": model.band_width if banded else None,
            "max_window_layers": pattern.index("banded") if banded else model.num_layers,
        }
    return {}


def _nearest(kind: str, name: str) -> str:
    return _THEIRS[kind].get(name, _THEIRS[kind]["banded"])  # strided layers are refused when knobs are compared


def shortest_period(pattern: Sequence[str]) -> tuple[str, ...]:
    """The shortest pattern that gives the same layers when it is repeated."""
    count = len(pattern)
    sizes = (n for n in range(1, count + 1) if count % n == 0 and list(pattern) == list(pattern[:n]) * (count // n))
    return tuple(pattern[: next(sizes)])


def _pattern(listed: Any, width: Any, layers: int, key: str, width_key: str) -> dict[str, Any]:
    wrong = not isinstance(listed, list) or any(not isinstance(name, str) or name not in _DENSE for name in listed)
    if wrong or len(listed) != layers:
        raise ValueError(f"{key}={listed!r} is not supported; must name global or full, or local or sliding, attention "
                         f"for each of the {layers} layers")  # fmt: skip
    pattern = shortest_period([_DENSE[name] for name in listed])
    if "banded" not in pattern:
        return {}
    return {"attention_pattern": pattern, "band_width": _width(width, width_key)}


def _width(value: Any, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{key} must be a whole number of at least 1, got {value!r}")
    return value


def _expanded(types: Any) -> list[Any]:
    try:
        return [name for names, count in types for _ in range(count) for name in names]
    except (TypeError, ValueError):
        raise ValueError(
            f"attention_types={types!r} must hold pairs of a list of kinds and how often it comes"
        ) from None
