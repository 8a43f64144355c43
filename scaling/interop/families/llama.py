"""LLaMA, 1 to 3, and what many others call themselves. Queries and keys have the half layout, not Meta's."""

import dataclasses
from typing import Any

from scaling.interop.family import ACTIVATIONS, Family, Key, RopeKeys

LLAMA = Family(
    "llama", "LlamaForCausalLM", "model.", "layers.",
    keys=(
        Key("vocab_size", "vocab_size"),
        Key("max_position_embeddings", "context_length"),
        Key("hidden_size", "d_model"),
        Key("num_hidden_layers", "num_layers"),
        Key("num_attention_heads", "num_heads"),
        Key("num_key_value_heads", "num_kv_heads", 0),
        Key("head_dim", "d_head", 0),
        Key("intermediate_size", "d_ff"),
        Key("hidden_act", "activation", "silu", ACTIVATIONS),
        Key("rms_norm_eps", "norm_epsilon", 1e-6),
        Key("attention_bias", "qkv_bias out_bias", False),
        Key("mlp_bias", "mlp_bias", False),
        Key("tie_word_embeddings", "tied_embedding", False),
        Key("attention_dropout", "dropout_attention", 0.0),
        Key("initializer_range", "init_std", 0.02),
    ),
    fixed={"norm_kind": "rms", "positions": "rotary", "gated": True},
    outside={
        "embed_tokens.weight": ("tokens", "V W"),
        "norm.weight": ("final_norm.gain", "D"),
        "lm_head.weight": ("unembedding", "V W"),
    },
    inside={
        f"{place}.{name}_proj.{kind}": (f"{ours}{end}", f"{rows}{f' {columns}' * (kind == 'weight')}")
        for place, name, ours, rows, columns in (
            ("self_attn", "q", "attention.query", "HK", "D"),
            ("self_attn", "k", "attention.key", "NK", "D"),
            ("self_attn", "v", "attention.value", "NK", "D"),
            ("self_attn", "o", "attention.out", "D", "HK"),
            ("mlp", "gate", "mlp.gate", "F", "D"),
            ("mlp", "up", "mlp.up", "F", "D"),
            ("mlp", "down", "mlp.down", "D", "F"),
        )
        for kind, end in (("weight", ""), ("bias", "_bias"))
    } | {
        "self_attn.q_norm.weight": ("attention.query_norm.gain", "K"),
        "self_attn.k_norm.weight": ("attention.key_norm.gain", "K"),
        "input_layernorm.weight": ("attention_norm.gain", "D"),
        "post_attention_layernorm.weight": ("mlp_norm.gain", "D"),
    },
    unused="pretraining_tp unk_token_id",
    buffers=r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
    rope=RopeKeys(),
)  # fmt: skip


def varied(
    model_type: str, name: str, keys: tuple[Key, ...], without: str, fixed: dict[str, Any], **more: Any
) -> Family:
    """LLaMA with these keys, without the keys of these names, and with other things fixed."""
    new = {key.theirs: key for key in keys}
    kept = tuple(new.get(key.theirs, key) for key in LLAMA.keys if key.theirs not in without.split())
    added = tuple(key for key in keys if key.theirs not in {key.theirs for key in kept})
    values: dict[str, Any] = dict(keys=kept + added, fixed={**LLAMA.fixed, **fixed}, **more)
    return dataclasses.replace(LLAMA, model_type=model_type, class_name=f"{name}ForCausalLM", **values)
