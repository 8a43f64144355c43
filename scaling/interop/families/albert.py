"""ALBERT and ELECTRA: BERT with narrow embeddings; in ALBERT all layers of a group have the same weights."""

from scaling.interop.families.bert import (
    BUFFERS,
    EMBEDDINGS,
    ENCODER,
    INSIDE,
    KEYS,
    ONLY,
    UNUSED,
    block,
    head,
    linear,
    with_defaults,
)
from scaling.interop.family import ACTIVATIONS, Family, Key

_NARROW = ENCODER | {"narrow_embedding": True}

ELECTRA = Family(
    "electra", "ElectraForMaskedLM", "electra.", "encoder.layer.",
    # The activation of the generator's head is fixed.
    keys=(
        *with_defaults(KEYS, d_model=256, num_heads=4, d_ff=1024),
        Key("embedding_size", "embedding_width", 128),
        Key("hidden_act", "activation", "gelu", {"gelu": "gelu"}),
    ),
    fixed=_NARROW,
    outside=EMBEDDINGS | linear("embeddings_project", "project_in", "D", "W") | head(
        "generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head", "generator_lm_head.bias"
    ) | linear("discriminator_predictions.dense", "discriminator", "Q", "D") | {
        "discriminator_predictions.dense_prediction.weight": ("replaced_head", "O D"),
        "discriminator_predictions.dense_prediction.bias": ("replaced_bias", "O"),
    },
    inside=INSIDE,
    only=ONLY,
    unused=UNUSED + " summary_last_dropout",
    buffers=BUFFERS,
    bare_class="ElectraModel",
    discriminator_class="ElectraForPreTraining",
    optional={
        "generator_predictions.dense.weight": "head_transform logit_bias",
        "discriminator_predictions.dense.weight": "discriminator",
    },
)  # fmt: skip

ALBERT = Family(
    "albert", "AlbertForMaskedLM", "albert.", "encoder.albert_layer_groups.",
    keys=(
        *with_defaults(
            tuple(key for key in KEYS if "dropout" not in key.ours),
            vocab_size=30_000, d_model=4096, num_heads=64, d_ff=16_384,
        ),
        Key("hidden_dropout_prob", "dropout_embedding dropout_residual", 0.0),
        Key("attention_probs_dropout_prob", "dropout_attention", 0.0),
        Key("embedding_size", "embedding_width", 128),
        Key("num_hidden_groups", "layer_groups", 1),
        Key("hidden_act", "activation", "gelu_tanh", ACTIVATIONS),
    ),
    fixed=_NARROW,
    outside=(
        EMBEDDINGS
        | linear("encoder.embedding_hidden_mapping_in", "project_in", "D", "W")
        | linear("pooler", "pooler", "Q", "D")
        | head("predictions.dense", "predictions.LayerNorm", "predictions.decoder", "predictions.bias")
        | {"sop_classifier.classifier.weight": ("pair_head", "2 D")}
        | {"sop_classifier.classifier.bias": ("pair_bias", "2")}
    ),
    inside={
        f"albert_layers.0.{name}": entry
        for name, entry in block(
            "attention.query attention.key attention.value attention.dense attention.LayerNorm ffn ffn_output "
            "full_layer_layer_norm"
        ).items()
    },
    only=ONLY | {"inner_group_num": 1},
    unused=UNUSED + " classifier_dropout_prob down_scale_factor gap_size net_structure_type num_memory_blocks",
    buffers=BUFFERS + r"|predictions\.decoder\.bias",
    bare_class="AlbertModel",
    pairs_class="AlbertForPreTraining",
    optional={
        "pooler.weight": "pooler", "predictions.dense.weight": "head_transform logit_bias",
        "sop_classifier.classifier.weight": "pair_head",
    },
)  # fmt: skip
