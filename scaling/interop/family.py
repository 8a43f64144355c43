"""What a table of ``interop/families`` says: how Hugging Face spells config and tensors of a kind of model."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from scaling.config import schema as cfg

REQUIRED = object()
_SECTIONS = ("rotary", "experts", "disentangled")  # of ``cfg.Model``

# Their names of activations to ours; the first name of each of ours is the one written.
ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


class Key(NamedTuple):
    """A key of their config.json.

    Attributes:
        theirs: its name; several, separated by blanks, must have the same value.
        ours: the knob of ``cfg.Model`` that it sets; several, separated by blanks, are set to the same value, or to
            those of a tuple.
        default: transformers' own value, in our terms, where the key is left out or null. None stands for a value that
            is derived from others, and is written as null where it is the derived one; 0 is written as a number. A
            ``Key`` stands for the value of that key.
        names: their values to ours, of a key that is no number; the first name of each of ours is the one written.
    """

    theirs: str
    ours: str
    default: Any = REQUIRED
    names: Mapping[Any, Any] | None = None


class RopeKeys(NamedTuple):
    """Old names of two keys of rotary positions, and what transformers takes where the keys are left out.

    Attributes:
        theta: of rope_theta.
        fraction: of partial_rotary_factor.
        default_fraction, default_theta: their values.
    """

    theta: str = "rope_theta"
    fraction: str = "partial_rotary_factor"
    default_fraction: float = 1.0
    default_theta: float = 10_000.0


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of model.

    A layout is the order of a tensor's axes with blanks between its dimensions: "D 3HK" is a matrix whose columns go
    over queries, keys and values, in these over heads, in these over features. The letters are those of
    ``interop.weights.AXES``; 2 or 3 stands for a tensor that holds so many of our parameters. A name with "{e}" in it
    is that of a tensor for each expert; "{n}" is the number of the layer.

    Attributes:
        model_type, class_name: as in config.json.
        prefix: of the names of tensors in a folder of a whole model; bare models lack it, or its first part.
        layers: what the names of tensors in layer 0 begin with, before "0."; "" = the names hold a "{n}".
        keys: of config.json, with our knobs.
        fixed: knobs that are not the defaults of ``cfg.Model`` in every model of the family.
        outside: tensors outside of the layers: their name to our parameter and the layout.
        inside: tensors of a layer, in the same way; several parameters, separated by blanks, are one tensor. Those of
            MLPs are passed over in layers that have experts, and the reverse.
        inside_too: all tensors of a layer in another spelling, which is read and never written.
        encoder_layers: as ``layers``, of an encoder beside the decoder.
        inside_encoder: as ``inside``, of its layers. Its parameters outside of them are in ``outside``.
        only: other keys that change numbers, with the one value that is supported.
        unused: other keys that change no logits.
        buffers: regular expression of tensors that are passed over.
        windows: how config.json says which layers see a window; a kind of ``interop.windows``.
        rope: keys of rotary positions; None = no such keys.
        balance: key of the coefficient of the balance loss of experts.
        plus_one: a norm multiplies by 1 plus what is stored.
        scaled_by_layer: key that asks for scores divided by the number of the layer, from 1.
        bare_class: as ``class_name``, of a model without logits; "" = there is none.
        pairs_class: as ``class_name``, of a model with a pair head.
        discriminator_class: as ``class_name``, of a discriminator.
        optional: tensors that decide by being there: their name to the knobs that are then true, or with a minus sign
            before the knob, false.
        respelled: ends of names of tensors in other folders, to those of the table.
        counts_offset: their context length counts the rows of ``position_offset``.
        respelled_keys: makes keys of config.json that have several spellings, or depend on each other, those of the
            table; None = there are none.
    """

    model_type: str
    class_name: str
    prefix: str
    layers: str
    keys: tuple[Key, ...]
    fixed: Mapping[str, Any]
    outside: Mapping[str, tuple[str, str]]
    inside: Mapping[str, tuple[str, str]]
    only: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unused: str = ""
    buffers: str = ""
    windows: str = "none"
    inside_too: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    rope: RopeKeys | None = None
    balance: str = ""
    plus_one: bool = False
    scaled_by_layer: str = ""
    bare_class: str = ""
    pairs_class: str = ""
    discriminator_class: str = ""
    optional: Mapping[str, str] = dataclasses.field(default_factory=dict)
    encoder_layers: str = ""
    inside_encoder: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    respelled: Mapping[str, str] = dataclasses.field(default_factory=dict)
    counts_offset: bool = False
    respelled_keys: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None

    @property
    def may_have(self) -> tuple[str, ...]:
        """Knobs that ``optional`` tensors decide."""
        return tuple(knob.lstrip("-") for knobs in self.optional.values() for knob in knobs.split())


# Knobs that change no logits of a trained model, or whose size changes only rows that no token has.
FREE = frozenset(
    {"vocab_multiple", "document_mask", "dropout_embedding", "dropout_attention", "dropout_residual", "init_std"}
    | {"scale_residual_init", "base_width", "base_depth"}
    | {"experts.capacity", "experts.balance_loss", "experts.z_loss"}
)


def get(model: cfg.Model, knob: str) -> Any:
    """The value of a knob, such as ``rotary.dim``."""
    value: Any = model
    for name in knob.split("."):
        value = getattr(value, name)
    return value


def with_knobs(model: cfg.Model, values: Mapping[str, Any]) -> cfg.Model:
    """The model with these knobs, such as ``rotary.dim``, set."""
    flat = {knob: value for knob, value in values.items() if "." not in knob}
    for section in _SECTIONS:
        prefix = f"{section}."
        inside = {knob.removeprefix(prefix): value for knob, value in values.items() if knob.startswith(prefix)}
        flat[section] = dataclasses.replace(flat.get(section, getattr(model, section)), **inside)
    return dataclasses.replace(model, **flat)
