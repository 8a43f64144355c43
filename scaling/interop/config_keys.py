"""Between config.json of a Hugging Face folder and ``cfg.Model``, both ways, by the tables of ``interop/families``.

Reading refuses every key that might change numbers and that it does not know. Writing reads back what it would write,
and refuses a model that does not come back the same.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from scaling.config import schema as cfg
from scaling.config.resolve import resolve, with_sizes
from scaling.interop import rope, windows
from scaling.interop.families import FAMILIES
from scaling.interop.family import FREE, REQUIRED, Family, Key, get, with_knobs

# Keys that any config may have and that change no logits.
_UNUSED = (
    "architectures auto_map bos_token_id chunk_size_feed_forward dtype eos_token_id gradient_checkpointing id2label "
    "finetuning_task is_decoder is_llama_config keys_to_ignore_at_inference label2id model_type num_labels "
    "output_attentions output_hidden_states output_past pad_token_id prefix problem_type pruned_heads return_dict "
    "sep_token_id task_specific_params tf_legacy_loss tokenizer_class torch_dtype torchscript transformers.js_config "
    "transformers_version use_bfloat16 use_cache bad_words_ids begin_suppress_tokens cross_attention_hidden_size "
    "decoder_start_token_id diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size "
    "exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length min_length "
    "no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores remove_invalid_values "
    "repetition_penalty return_dict_in_generate suppress_tokens temperature top_k top_p typical_p "
    "summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout"
)
# Keys that change numbers in some family, and the only value that we have.
_ONLY = {
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "tie_encoder_decoder": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "quantization_config": None,
    "rope_interleaved": False,
}
# Of the keys with one value, those for which transformers assumes another where they are left out.
_WRITTEN = ("layer_norm_epsilon", "relative_attention")
# Knobs by which families differ most: a family that lacks one of these is not the nearest to a model.
_STRUCTURE = ("causal", "encoder_layers", "norm", "norm_kind", "positions", "parallel", "gated", "experts.count")
# Knobs to the beginnings of the names of others, which say nothing where the first one differs.
_FOLLOW = {
    "experts.count": ("experts.", "gated", "mlp_bias", "d_ff"),
    "experts.every": ("gated", "mlp_bias", "d_ff"),
    "attention_pattern": ("band_width",),
    "norm_kind": ("norm_bias",),
    "positions": ("position_offset", "sinusoid", "relative_", "rotary.", "disentangled."),
}


def to_model(values: Mapping[str, Any], where: str, vocab_multiple: int) -> tuple[cfg.Model, Family]:
    """The model that a config.json describes, resolved; keys that are left out have transformers' defaults.

    Args:
        values: of config.json.
        where: the file, for messages.
        vocab_multiple: rows of the embedding are padded to a multiple of this.

    Raises:
        ValueError: a family, key or value that we do not have.
    """
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ValueError(f"{where}: model_type {kind!r} is not supported; must be one of {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    try:
        values = family.respelled_keys(values) if family.respelled_keys else values
        _check_keys(values, family)
        knobs = dict(family.fixed) | {"vocab_multiple": vocab_multiple}
        for key in family.keys:
            value, ours = _value(key, values), key.ours.split()
            knobs |= zip(ours, value, strict=True) if isinstance(value, tuple) else dict.fromkeys(ours, value)
        if family.counts_offset:
            knobs["context_length"] -= knobs["position_offset"]
        if family.balance:
            knobs |= _balance(family.balance, values, knobs)
        model = with_sizes(with_knobs(cfg.Model(), knobs))
        model = with_knobs(model, windows.read(family.windows, values, model.num_layers))
        if family.rope:
            found = rope.read(values, family.rope, model.d_head, model.context_length)
            model = dataclasses.replace(model, rotary=found)
        _check_sizes(model)
    except ValueError as error:
        raise ValueError(f"{where}: {_in_their_names(str(error), family)}") from None
    return model, family


def from_model(model: cfg.Model, preferred: str = "") -> tuple[dict[str, Any], Family]:
    """The config.json that expresses a model, and its family.

    Args:
        model: resolved.
        preferred: the model_type to take if it can express the model; "" = the first that can.

    Raises:
        ValueError: none can; names the knob by which the nearest falls short.
    """
    short: dict[str, dict[str, str]] = {}
    for name in sorted(FAMILIES, key=lambda name: name != preferred):
        values = _values(model, FAMILIES[name])
        try:
            short[name] = _differences(model, values, FAMILIES[name])
        except ValueError:  # sizes that the family cannot have
            continue
        if not short[name]:
            return values, FAMILIES[name]
    nearest = min(short, key=lambda name: sum(10 if knob in _STRUCTURE else 1 for knob in short[name]))
    # A knob that no family has like this says more than one that another family would have.
    nowhere = set.intersection(*(set(differences) for differences in short.values()))
    knob = next((knob for knob in short[nearest] if knob in nowhere), next(iter(short[nearest])))
    raise ValueError(
        f"config.model.{knob}={get(model, knob)!r} cannot be exported to Hugging Face's {nearest}; there it must be "
        f"{short[nearest][knob]}"
    )


def _check_keys(values: Mapping[str, Any], family: Family) -> None:
    for name, right in {**_ONLY, **family.only}.items():
        found = values.get(name, right)
        if found is not None and (found != right or isinstance(found, bool) != isinstance(right, bool)):
            raise ValueError(f"{name}={found!r} is not supported; must be {json.dumps(right)}")
    known = (
        {name for key in family.keys for name in key.theirs.split()}
        | family.only.keys()
        | _ONLY.keys()
        | set(_UNUSED.split())
    )
    if values.get(family.scaled_by_layer) is not None:
        _check_bool(family.scaled_by_layer, values[family.scaled_by_layer])
    known |= {*family.unused.split(), *windows.KEYS[family.windows], family.scaled_by_layer, family.balance}
    known |= set(rope.keys(family.rope)) if family.rope else set()
    unknown = [name for name in values if name not in known and not name.startswith("_") and values[name] is not None]
    if unknown:
        raise ValueError(
            f"{unknown[0]}={values[unknown[0]]!r} is not a key of {family.model_type} that is known here, and may "
            "change the numbers; remove it if it does not"
        )


def _value(key: Key, values: Mapping[str, Any]) -> Any:
    """The value of a key in our terms, checked by itself."""
    first, *others = key.theirs.split()
    found = values.get(first)
    for other in others:
        if values.get(other, found) != found:
            raise ValueError(f"{first}={found!r} and {other}={values[other]!r} must be equal")
    if found is None and isinstance(key.default, Key):
        return _value(key.default, values)
    if found is None and key.default is not REQUIRED:
        return key.default or 0 if key.names is None and not isinstance(key.default, bool) else key.default
    if key.names is not None:
        if all(isinstance(name, bool) for name in key.names):
            _check_bool(key.theirs, found)
        if not isinstance(found, str | bool) or found not in key.names:
            raise ValueError(f"{key.theirs}={found!r} is not supported; must be one of {', '.join(key.names)}")
        return key.names[found]
    like = get(cfg.Model(), key.ours.split()[0])
    if isinstance(like, bool):
        _check_bool(key.theirs, found)
        return found
    whole, dropout = isinstance(like, int), key.ours.startswith("dropout")
    low, high = (int(key.default != 0), math.inf) if whole else (0, 1 if dropout else math.inf)
    if isinstance(found, bool) or not isinstance(found, int if whole else int | float) or not low <= found <= high:
        raise ValueError(f"{key.theirs} must be a number in [{low}, {high}], got {found!r}")
    return found if whole else float(found)


def _check_bool(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")


def _balance(key: str, values: Mapping[str, Any], knobs: Mapping[str, Any]) -> dict[str, Any]:
    """The coefficient of our balance loss, which is 1 for each layer at equal load.

    Theirs is one for all layers, and then the number of experts that a token takes.
    """
    found = _value(Key(key, "experts.balance_loss", 0.001), values)
    return {"experts.balance_loss": found * knobs["experts.per_token"] / knobs["num_layers"]}


def _check_sizes(model: cfg.Model) -> None:
    """Refuses sizes and switches that exclude each other, as training does."""
    step = cfg.Train(tokens=model.context_length, batch_tokens=model.context_length)
    resolve(cfg.Config(model=model, train=step, optimizer=cfg.Optimizer(warmup_tokens=0)))


def _in_their_names(sentence: str, family: Family) -> str:
    for key in family.keys:
        for knob in key.ours.split():
            sentence = sentence.replace(f"config.model.{knob}=", f"{key.theirs}=")
    return sentence


def _values(model: cfg.Model, family: Family) -> dict[str, Any]:
    """The config.json of a family that comes nearest to a model."""
    given, model = model, _canonical(model)
    derived = (
        with_sizes(dataclasses.replace(model, d_head=0, d_ff=0)) if model.d_model % model.num_heads == 0 else model
    )
    values: dict[str, Any] = {
        "model_type": family.model_type,
        "architectures": [_class_name(model, family)],
    }
    for key in family.keys:
        knob, *others = key.ours.split()
        value = get(model, knob)
        if key.names is not None:
            if isinstance(next(iter(key.names.values())), tuple):
                value = (value, *(get(model, other) for other in others))
            value = next((theirs for theirs, ours in key.names.items() if ours == value), next(iter(key.names)))
        elif key.default is None and value == get(derived, knob):
            value = None
        elif knob == "rotary.dim":
            value = value or model.d_head
        elif knob == "context_length" and family.counts_offset:
            value += model.position_offset
        values |= dict.fromkeys(key.theirs.split(), value)
    values |= windows.write(family.windows, given)
    if family.rope:
        values |= rope.write(given.rotary, family.rope, given.d_head)
    if family.balance:
        theirs = model.experts.balance_loss * model.num_layers / model.experts.per_token
        values[family.balance] = float(f"{theirs:.12g}")
    # transformers would otherwise assume ids of its own, which may lie outside the vocabulary.
    return (
        values
        | {name: value for name, value in family.only.items() if name in _WRITTEN}
        | {
            "bos_token_id": None,
            "eos_token_id": None,
        }
    )


def _class_name(model: cfg.Model, family: Family) -> str:
    if model.discriminator:
        return family.discriminator_class
    if family.bare_class and not model.has_logits:
        return family.bare_class
    return family.pairs_class if model.pair_head else family.class_name


def _differences(model: cfg.Model, values: dict[str, Any], family: Family) -> dict[str, str]:
    """Knobs that would not come back from a config.json, the most telling first, with what would be right."""
    ours = _canonical(model)
    if ours.d_model % ours.num_heads and not any(key.ours == "d_head" for key in family.keys):
        return {"num_heads": f"a divisor of config.model.d_model={ours.d_model}"}
    theirs = _canonical(to_model(values, family.model_type, model.vocab_multiple)[0])
    names = {key.ours: key.names.values() for key in family.keys if key.names}
    knobs = [name.removeprefix(".") for name, *_ in cfg.knobs(ours, "")]
    free = FREE.union(family.may_have)
    for group in map(str.split, family.optional.values()):  # a tensor decides all of its knobs, or none
        if len({get(ours, knob.lstrip("-")) != knob.startswith("-") for knob in group}) > 1:
            free -= {knob.lstrip("-") for knob in group}
    differing = [knob for knob in knobs if knob not in free and get(ours, knob) != get(theirs, knob)]
    following = tuple(prefix for knob in differing for prefix in _FOLLOW.get(knob, ()))
    kept = [knob for knob in differing if knob == "experts.count" or not knob.startswith(following)]
    kept.sort(key=lambda knob: knob not in _FOLLOW)
    return {
        knob: " or ".join(dict.fromkeys(names[knob])) if knob in names else repr(get(theirs, knob)) for knob in kept
    }


def _canonical(model: cfg.Model) -> cfg.Model:
    """The same for all models that compute the same: switches that do nothing here have their defaults."""
    default = cfg.Model()
    pattern = windows.shortest_period(model.attention_pattern)
    if model.band_width >= model.context_length:
        pattern = ("dense",)
    relative, no_mlps = model.positions == "relative", model.expert_layers == model.num_layers
    changes: dict[str, Any] = {
        "attention_pattern": pattern,
        "band_width": default.band_width if set(pattern) == {"dense"} else model.band_width,
        "num_kv_heads": model.kv_heads,
        "embedding_width": model.d_embedding,
        "d_ff": model.d_expert if no_mlps else model.d_ff,
        "gated": default.gated if no_mlps else model.gated,
        "mlp_bias": default.mlp_bias if no_mlps else model.mlp_bias,
        "experts": dataclasses.replace(model.experts, d_ff=model.d_expert) if model.experts.count else default.experts,
        "relative_buckets": model.relative_buckets if relative else default.relative_buckets,
        "relative_distance": model.relative_distance if relative else default.relative_distance,
        "norm_bias": model.norm_bias if model.norm_kind == "layer" else default.norm_bias,
        "position_offset": model.position_offset if model.has_position_table else 0,
        "attention_scale": model.attention_scale or 1 / math.sqrt(model.d_head * (1 + model.positional_scores)),
        "token_types": default.token_types if model.positions == "xlnet" else model.token_types,
        "sinusoid": model.sinusoid if model.positions == "sinusoidal" else default.sinusoid,
        "rotary": _canonical_rotary(model) if model.positions == "rotary" else default.rotary,
        "disentangled": _canonical_disentangled(model) if model.distances else default.disentangled,
    }
    return dataclasses.replace(model, **changes)


def _canonical_disentangled(model: cfg.Model) -> cfg.Disentangled:
    by = model.disentangled
    return dataclasses.replace(by, distance=by.distance or model.context_length)


def _canonical_rotary(model: cfg.Model) -> cfg.Rotary:
    rotary, kind = model.rotary, model.rotary.scaling
    turns = kind in ("llama3", "yarn")
    low, high = rotary.bounds if turns else (0.0, 0.0)
    return cfg.Rotary(
        theta=rotary.theta,
        dim=rotary.dim or model.d_head,
        interleaved=rotary.interleaved,
        scaling=kind,
        factor=rotary.factor if kind != "none" else 1.0,
        original_length=rotary.original_length if turns else 0,
        low=low,
        high=high,
        attention_factor=rotary.amplitude if kind == "yarn" else 0.0,
        truncate=rotary.truncate if kind == "yarn" else True,
    )
