"""Rotary positions in config.json: ``rope_parameters``, and the keys that said the same before transformers 5.

Where both are there and differ, transformers silently takes the old ones; here that is refused. Both are written.
"""

import math
from collections.abc import Mapping
from typing import Any

from scaling.config import schema as cfg
from scaling.interop.family import RopeKeys

# Their names in rope_parameters to our knobs, by rope_type.
_NAMES = {
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low",
        "high_freq_factor": "high",
        "original_max_position_embeddings": "original_length",
    },
    "yarn": {
        "factor": "factor",
        "beta_slow": "low",
        "beta_fast": "high",
        "original_max_position_embeddings": "original_length",
        "attention_factor": "attention_factor",
        "truncate": "truncate",
    },
}
_ORIGINAL = "original_max_position_embeddings"
_NEEDED = {"linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor"), "yarn": ()}


def keys(names: RopeKeys) -> tuple[str, ...]:
    """The keys of config.json that ``read`` looks at."""
    return ("rope_parameters", "rope_scaling", _ORIGINAL, names.theta, names.fraction)


def read(values: Mapping[str, Any], names: RopeKeys, d_head: int, context: int) -> cfg.Rotary:
    """The knobs of rotary positions.

    Args:
        values: of config.json.
        names: of keys, and their defaults.
        d_head: width of a head.
        context: the longest text.

    Raises:
        ValueError: keys that contradict each other, a scaling that we do not have, or a value that cannot be.
    """
    given = _together(values, names)
    kind = given.pop("rope_type", "default")
    if not isinstance(kind, str) or kind not in _NAMES:
        raise ValueError(f"rope_type={kind!r} is not supported; must be one of {', '.join(_NAMES)}")
    for name, value in given.items():
        if name != "truncate" and (
            isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30
        ):
            raise ValueError(f"{name} must be a number more than 0, got {value!r}")
    if not isinstance(given.get("truncate", True), bool) or given.get(_ORIGINAL, 1) != int(given.get(_ORIGINAL, 1)):
        raise ValueError(f"truncate must be true or false, and {_ORIGINAL} a whole number")
    theta = given.pop("rope_theta", names.default_theta)
    fraction = given.pop("partial_rotary_factor", names.default_fraction)
    if kind == "yarn":
        _settle_yarn(given, context)
    if kind in ("llama3", "yarn"):
        given.setdefault(_ORIGINAL, context)
    missing = [name for name in _NEEDED.get(kind, ()) if name not in given]
    if missing or (unknown := sorted(given.keys() - _NAMES[kind].keys())):
        what = f"lack {missing[0]}" if missing else f"have an unknown key {unknown[0]}"
        raise ValueError(f"the rope keys {what}, with rope_type={kind!r}")
    whole = names.default_fraction == 1  # transformers would not heed another fraction in such a family
    if fraction > 1 or (whole and fraction != 1):
        raise ValueError(f"{names.fraction} must be {'1' if whole else 'at most 1'}, got {fraction}")
    width = int(d_head * fraction)
    if width < 2:
        raise ValueError(f"{names.fraction}={fraction} leaves no pair of the {d_head} features of a head to turn")
    found = {ours: given[theirs] for theirs, ours in _NAMES[kind].items() if theirs in given}
    found = {
        name: value if name == "truncate" else int(value) if name == "original_length" else float(value)
        for name, value in found.items()
    }
    dim = 0 if width == d_head else width
    return cfg.Rotary(theta=float(theta), dim=dim, scaling="none" if kind == "default" else kind, **found)


def write(rotary: cfg.Rotary, names: RopeKeys, d_head: int) -> dict[str, Any]:
    """The keys of config.json in both spellings; the reverse of ``read``."""
    fraction = (rotary.dim or d_head) / d_head
    if int(d_head * fraction) < (rotary.dim or d_head):  # by the rounding of the quotient
        fraction = math.nextafter(fraction, 2)
    kind = "default" if rotary.scaling == "none" else rotary.scaling
    # A knob of 0 stands for the default; llama3 has none in transformers.
    defaults = dict(zip(("low", "high"), rotary.bounds, strict=True))
    scaling = {
        theirs: value
        for theirs, ours in _NAMES[kind].items()
        if (value := getattr(rotary, ours) or defaults.get(ours)) is not None or ours == "truncate"
        if not (ours == "attention_factor" and not value)
    }
    if kind == "yarn":
        scaling["truncate"] = rotary.truncate
    part = {} if fraction == names.default_fraction == 1 else {"partial_rotary_factor": fraction}
    modern = {"rope_type": kind, "rope_theta": rotary.theta, **part, **scaling}
    old = {names.theta: rotary.theta, "rope_scaling": None if kind == "default" else modern}
    return {"rope_parameters": modern, **old, **({names.fraction: fraction} if part else {})}


def _together(values: Mapping[str, Any], names: RopeKeys) -> dict[str, Any]:
    """What both spellings say, with the names of ``rope_parameters``; null is as if left out."""
    sources = []
    for key in ("rope_parameters", "rope_scaling"):
        inside = values.get(key) or {}
        if not isinstance(inside, dict) or any(isinstance(value, dict) for value in inside.values()):
            raise ValueError(f"{key} must be one JSON object of numbers, the same for all layers")
        renamed = {"rope_type" if name == "type" else name: value for name, value in inside.items()}
        if renamed.get("rope_type", inside.get("type")) != inside.get("type", renamed.get("rope_type")):
            raise ValueError(f"{key} has type={inside['type']!r} and rope_type={inside['rope_type']!r}; keep one")
        sources.append((key, renamed))
    old = {"rope_theta": names.theta, "partial_rotary_factor": names.fraction, _ORIGINAL: _ORIGINAL}
    sources += [(key, {name: values.get(key)}) for name, key in old.items()]
    found: dict[str, Any] = {}
    where: dict[str, str] = {}
    for key, part in sources:
        for name, value in part.items():
            if value is None:
                continue
            if name in found and found[name] != value:
                raise ValueError(
                    f"{where[name]} and {key} contradict each other: {name} is {found[name]!r} and {value!r}; "
                    "keep the one that is right"
                )
            found[name], where[name] = value, key
    return found


def _settle_yarn(given: dict[str, Any], context: int) -> None:
    """Puts in the factor, and the attention factor that mscale and mscale_all_dim stand for."""
    if "factor" not in given and _ORIGINAL in given:
        given["factor"] = context / given[_ORIGINAL]
    scales = given.pop("mscale", 0), given.pop("mscale_all_dim", 0)
    if all(scales) and "attention_factor" not in given and given.get("factor", 1) > 1:
        above, below = (0.1 * scale * math.log(given["factor"]) + 1 for scale in scales)
        given["attention_factor"] = above / below
