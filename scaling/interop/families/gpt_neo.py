"""GPT-Neo: GPT-2 with plain matrices, scores that are not scaled, and a window in some layers."""

from scaling.interop.family import ACTIVATIONS, Family, Key

GPT_NEO = Family(
    "gpt_neo", "GPTNeoForCausalLM", "transformer.", "h.",
    keys=(
        Key("vocab_size", "vocab_size"),
        Key("max_position_embeddings", "context_length"),
        Key("hidden_size", "d_model"),
        Key("num_layers", "num_layers"),
        Key("num_heads", "num_heads"),
        Key("intermediate_size", "d_ff", None),
        Key("activation_function", "activation", "gelu_tanh", ACTIVATIONS),
        Key("layer_norm_epsilon", "norm_epsilon", 1e-5),
        Key("tie_word_embeddings", "tied_embedding", True),
        Key("embed_dropout", "dropout_embedding", 0.0),
        Key("attention_dropout", "dropout_attention", 0.0),
        Key("resid_dropout", "dropout_residual", 0.0),
        Key("initializer_range", "init_std", 0.02),
    ),
    fixed={"qkv_bias": False, "attention_scale": 1.0},
    outside={
        "wte.weight": ("tokens", "V W"),
        "wpe.weight": ("positions", "P S"),
        "ln_f.weight": ("final_norm.gain", "D"),
        "ln_f.bias": ("final_norm.bias", "D"),
        "lm_head.weight": ("unembedding", "V W"),
    },
    inside={
        "ln_1.weight": ("attention_norm.gain", "D"),
        "ln_1.bias": ("attention_norm.bias", "D"),
        "attn.attention.q_proj.weight": ("attention.query", "HK D"),
        "attn.attention.k_proj.weight": ("attention.key", "NK D"),
        "attn.attention.v_proj.weight": ("attention.value", "NK D"),
        "attn.attention.out_proj.weight": ("attention.out", "D HK"),
        "attn.attention.out_proj.bias": ("attention.out_bias", "D"),
        "ln_2.weight": ("mlp_norm.gain", "D"),
        "ln_2.bias": ("mlp_norm.bias", "D"),
        "mlp.c_fc.weight": ("mlp.up", "F D"),
        "mlp.c_fc.bias": ("mlp.up_bias", "F"),
        "mlp.c_proj.weight": ("mlp.down", "D F"),
        "mlp.c_proj.bias": ("mlp.down_bias", "D"),
    },
    unused="classifier_dropout",
    buffers=r"h\.\d+\.attn\.attention\.(bias|masked_bias)",
    windows="attention_types",
)  # fmt: skip
