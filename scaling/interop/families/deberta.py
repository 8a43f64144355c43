"""DeBERTa, and DeBERTa 2 and 3: BERT with disentangled attention (arXiv 2006.03654, 2111.09543)."""

from collections.abc import Mapping
from typing import Any

from scaling.interop.families.bert import BUFFERS, EMBEDDINGS, ENCODER, INSIDE, KEYS, head, linear, norm, with_defaults
from scaling.interop.family import ACTIVATIONS, Family, Key


def _one_spelling(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of keys that may be lists or texts, or mean the same by -1 and by being left out."""
    found = dict(values)
    kinds = found.get("pos_att_type") or []
    kinds = kinds.lower().split("|") if isinstance(kinds, str) else kinds
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        raise ValueError(f"pos_att_type must be a list of 'c2p' and 'p2c', got {kinds!r}")
    found["pos_att_type"] = "|".join(sorted(kind.strip() for kind in kinds))
    found.setdefault("relative_attention", False)
    for name in ("max_relative_positions", "position_buckets"):
        value = found.get(name)
        if type(value) is int and value < 1:
            del found[name]
    if found.get("max_relative_positions") is None:
        found["max_relative_positions"] = found.get("max_position_embeddings", 512)
    # Sizes that are those of every model here are named in some folders.
    width = found.get("hidden_size")
    for name in ("embedding_size", "pooler_hidden_size"):
        if width is not None and found.get(name) == width:
            del found[name]
    heads, each = found.get("num_attention_heads"), found.get("attention_head_size")
    if type(each) is int and type(heads) is int and each * heads == width:
        del found["attention_head_size"]
    return found


_KEYS = (
    *with_defaults(KEYS, token_types=0, norm_epsilon=1e-7),
    Key("hidden_act", "activation", "gelu", ACTIVATIONS),
    Key("max_relative_positions", "disentangled.distance"),
    Key(
        "pos_att_type", "disentangled.content_to_position disentangled.position_to_content", (False, False),
        {"c2p|p2c": (True, True), "c2p": (True, False), "p2c": (False, True)},
    ),
    Key("position_biased_input", "disentangled.absolute", True),
)  # fmt: skip
_FIXED = ENCODER | {"positions": "disentangled"}
_OUTSIDE = (
    EMBEDDINGS
    | {"encoder.rel_embeddings.weight": ("distances", "R D")}
    | head(
        "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.decoder",
        "cls.predictions.bias",
    )
)  # fmt: skip
_ONLY = {"relative_attention": True, "tie_word_embeddings": True, "is_decoder": False}
# The head that is not "legacy" computes the same.
_UNUSED = "legacy pooler_dropout pooler_hidden_act pooler_hidden_size cls_dropout classifier_dropout"
_RESPELLED = {
    f"lm_predictions.lm_head.{name}": f"cls.predictions.transform.{name}"
    for name in ("dense.weight", "dense.bias", "LayerNorm.weight", "LayerNorm.bias")
} | {"lm_predictions.lm_head.bias": "cls.predictions.bias"}
_BUFFERS = (
    BUFFERS
    + r"|embeddings\.position_embeddings\.weight|cls\.predictions\.decoder\.bias|mask_predictions\..*|pooler\..*"
)
_OPTIONAL = {"cls.predictions.transform.dense.weight": "head_transform logit_bias"}
_REST = {name: entry for name, entry in INSIDE.items() if not name.startswith("attention.self.")}

DEBERTA = Family(
    "deberta", "DebertaForMaskedLM", "deberta.", "encoder.layer.",
    keys=with_defaults(_KEYS, vocab_size=50_265),
    fixed=_FIXED | {"disentangled.key_bias": False},
    outside=_OUTSIDE,
    inside={
        "attention.self.in_proj.weight": ("attention.query attention.key attention.value", "H3K D"),
        "attention.self.q_bias": ("attention.query_bias", "HK"),
        "attention.self.v_bias": ("attention.value_bias", "NK"),
        "attention.self.pos_proj.weight": ("attention.distances.key", "HK D"),
    }
    | linear("attention.self.pos_q_proj", "attention.distances.query", "HK", "D")
    | _REST,
    only=_ONLY | {"talking_head": False},
    unused=_UNUSED,
    buffers=_BUFFERS,
    bare_class="DebertaModel",
    optional=_OPTIONAL,
    respelled=_RESPELLED,
    respelled_keys=_one_spelling,
)  # fmt: skip

DEBERTA_2 = Family(
    "deberta-v2", "DebertaV2ForMaskedLM", "deberta.", "encoder.layer.",
    keys=(
        *with_defaults(_KEYS, vocab_size=128_100, d_model=1536, num_layers=24, num_heads=24, d_ff=6144),
        Key("position_buckets", "disentangled.buckets", 0),
        Key("share_att_key", "disentangled.shared", False),
        Key("norm_rel_ebd", "disentangled.norm", False, {"none": False, "layer_norm": True}),
    ),
    fixed=_FIXED,
    outside=_OUTSIDE | norm("encoder.LayerNorm", "distances_norm"),
    inside=linear("attention.self.query_proj", "attention.query", "HK", "D")
    | linear("attention.self.key_proj", "attention.key", "NK", "D")
    | linear("attention.self.value_proj", "attention.value", "NK", "D")
    | linear("attention.self.pos_key_proj", "attention.distances.key", "HK", "D")
    | linear("attention.self.pos_query_proj", "attention.distances.query", "HK", "D")
    | _REST,
    only=_ONLY | {"conv_kernel_size": 0},
    unused=f"{_UNUSED} conv_act conv_groups",
    buffers=_BUFFERS,
    bare_class="DebertaV2Model",
    optional=_OPTIONAL,
    respelled=_RESPELLED,
    respelled_keys=_one_spelling,
)  # fmt: skip
