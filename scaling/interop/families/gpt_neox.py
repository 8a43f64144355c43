"""GPT-NeoX and Pythia: a part of each head turns; attention and MLP side by side with a norm each, or in sequence."""

from scaling.interop.family import ACTIVATIONS, Family, Key, RopeKeys

GPT_NEOX = Family(
    "gpt_neox", "GPTNeoXForCausalLM", "gpt_neox.", "layers.",
    keys=(
        Key("vocab_size", "vocab_size"),
        Key("max_position_embeddings", "context_length"),
        Key("hidden_size", "d_model"),
        Key("num_hidden_layers", "num_layers"),
        Key("num_attention_heads", "num_heads"),
        Key("intermediate_size", "d_ff"),
        Key("hidden_act", "activation", "gelu", ACTIVATIONS),
        Key("layer_norm_eps", "norm_epsilon", 1e-5),
        Key("use_parallel_residual", "parallel", "two_norms", {True: "two_norms", False: "no"}),
        Key("attention_bias", "qkv_bias out_bias", True),
        Key("tie_word_embeddings", "tied_embedding", False),
        Key("hidden_dropout", "dropout_residual", 0.0),
        Key("attention_dropout", "dropout_attention", 0.0),
        Key("initializer_range", "init_std", 0.02),
    ),
    fixed={"positions": "rotary"},
    outside={
        "embed_in.weight": ("tokens", "V W"),
        "final_layer_norm.weight": ("final_norm.gain", "D"),
        "final_layer_norm.bias": ("final_norm.bias", "D"),
        "embed_out.weight": ("unembedding", "V W"),
    },
    inside={
        "input_layernorm.weight": ("attention_norm.gain", "D"),
        "input_layernorm.bias": ("attention_norm.bias", "D"),
        "attention.query_key_value.weight": ("attention.query attention.key attention.value", "H3K D"),
        "attention.query_key_value.bias": ("attention.query_bias attention.key_bias attention.value_bias", "H3K"),
        "attention.dense.weight": ("attention.out", "D HK"),
        "attention.dense.bias": ("attention.out_bias", "D"),
        "post_attention_layernorm.weight": ("mlp_norm.gain", "D"),
        "post_attention_layernorm.bias": ("mlp_norm.bias", "D"),
        "mlp.dense_h_to_4h.weight": ("mlp.up", "F D"),
        "mlp.dense_h_to_4h.bias": ("mlp.up_bias", "F"),
        "mlp.dense_4h_to_h.weight": ("mlp.down", "D F"),
        "mlp.dense_4h_to_h.bias": ("mlp.down_bias", "D"),
    },
    unused="classifier_dropout",
    buffers=r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)|rotary_emb\.inv_freq",
    rope=RopeKeys("rotary_emb_base", "rotary_pct", 0.25),
)  # fmt: skip
