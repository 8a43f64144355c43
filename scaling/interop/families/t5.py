"""T5 (1.0, 1.1, Flan-T5) and mT5: an encoder and a decoder with relative positions (arXiv 1910.10683, 2010.11934)."""

import dataclasses

from scaling.interop.family import Family, Key


def _attention(theirs: str, ours: str) -> dict[str, tuple[str, str]]:
    return {
        f"{theirs}.q.weight": (f"{ours}.query", "HK D"),
        f"{theirs}.k.weight": (f"{ours}.key", "NK D"),
        f"{theirs}.v.weight": (f"{ours}.value", "NK D"),
        f"{theirs}.o.weight": (f"{ours}.out", "D HK"),
    }


def _mlp(layer: str) -> dict[str, tuple[str, str]]:
    return {
        f"{layer}.DenseReluDense.wi{{_1}}.weight": ("mlp.up", "F D"),
        f"{layer}.DenseReluDense.wi_0.weight": ("mlp.gate", "F D"),
        f"{layer}.DenseReluDense.wo.weight": ("mlp.down", "D F"),
        f"{layer}.layer_norm.weight": ("mlp_norm.gain", "D"),
    }


_SELF = _attention("layer.0.SelfAttention", "attention") | {"layer.0.layer_norm.weight": ("attention_norm.gain", "D")}
_CROSS = _attention("layer.1.EncDecAttention", "cross") | {"layer.1.layer_norm.weight": ("cross_norm.gain", "D")}
_RELATIVE = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
# Whether logits are divided by sqrt(d_model): a key of its own, or before there was one, whether embeddings are tied.
_TIES = Key("tie_word_embeddings", "scaled_output", True)

T5 = Family(
    "t5", "T5ForConditionalGeneration", "", "decoder.block.",
    keys=(
        Key("vocab_size", "vocab_size", 32_128),
        Key("n_positions", "context_length", 512),
        Key("d_model", "d_model", 512),
        Key("d_kv", "d_head", 64),
        Key("d_ff", "d_ff", 2048),
        Key("num_layers", "encoder_layers", 6),
        Key("num_decoder_layers", "num_layers", Key("num_layers", "num_layers", 6)),
        Key("num_heads", "num_heads", 8),
        Key("relative_attention_num_buckets", "relative_buckets", 32),
        Key("relative_attention_max_distance", "relative_distance", 128),
        Key("dropout_rate", "dropout_embedding dropout_residual dropout_attention", 0.1),
        Key("layer_norm_epsilon", "norm_epsilon", 1e-6),
        Key(
            "feed_forward_proj", "activation gated", ("relu", False),
            {
                "relu": ("relu", False), "gated-gelu": ("gelu_tanh", True), "gated-silu": ("silu", True),
                "gated-relu": ("relu", True), "gelu_new": ("gelu_tanh", False), "gelu": ("gelu", False),
            },
        ),
        _TIES,
        Key("scale_decoder_outputs", "scaled_output", _TIES),
    ),
    fixed={
        "norm_kind": "rms", "positions": "relative", "attention_scale": 1.0, "qkv_bias": False, "out_bias": False,
        "mlp_bias": False,
    },
    outside={
        "shared.weight": ("tokens", "V W"),
        f"encoder.{_RELATIVE}": ("encoder.relative", "B H"),
        "encoder.final_layer_norm.weight": ("encoder.final_norm.gain", "D"),
        f"decoder.{_RELATIVE}": ("relative", "B H"),
        "decoder.final_layer_norm.weight": ("final_norm.gain", "D"),
        "lm_head.weight": ("unembedding", "V W"),
    },
    inside=_SELF | _CROSS | _mlp("layer.2"),
    encoder_layers="encoder.block.",
    inside_encoder=_SELF | _mlp("layer.1"),
    only={"is_encoder_decoder": True},
    unused="initializer_factor dense_act_fn is_gated_act classifier_dropout num_hidden_layers",
    buffers=(
        r"(encoder|decoder)\.embed_tokens\.weight|"
        # Old files have a table that was never read.
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"
    ),
    optional={"lm_head.weight": "-tied_embedding"},
)  # fmt: skip

# Its logits are never scaled, whatever its config says.
MT5 = dataclasses.replace(
    T5,
    model_type="mt5",
    class_name="MT5ForConditionalGeneration",
    keys=tuple(key for key in T5.keys if key.ours != "scaled_output"),
    unused=f"{T5.unused} tie_word_embeddings tokenizer_class",
)
