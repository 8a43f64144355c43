"""CTRL: sines and then cosines of the position, embeddings times sqrt(d_model), a bias on the logits."""

from scaling.interop.family import Family, Key

_ATTENTION = "multi_head_attention"

CTRL = Family(
    "ctrl", "CTRLLMHeadModel", "transformer.", "h.",
    keys=(
        Key("vocab_size", "vocab_size"),
        Key("n_positions", "context_length"),
        Key("n_embd", "d_model"),
        Key("n_layer", "num_layers"),
        Key("n_head", "num_heads"),
        Key("dff", "d_ff"),
        Key("tie_word_embeddings", "tied_embedding", True),
        Key("embd_pdrop", "dropout_embedding", 0.1),
        Key("resid_pdrop", "dropout_residual", 0.1),
        Key("initializer_range", "init_std", 0.02),
    ),
    fixed={
        "positions": "sinusoidal", "scaled_embedding": True, "logit_bias": True, "activation": "relu",
        "norm_epsilon": 1e-6,
    },
    outside={
        "w.weight": ("tokens", "V W"),
        "layernorm.weight": ("final_norm.gain", "D"),
        "layernorm.bias": ("final_norm.bias", "D"),
        "lm_head.weight": ("unembedding", "V W"),
        "lm_head.bias": ("logit_bias", "V"),
    },
    inside={
        f"{_ATTENTION}.{name}.{kind}": (f"attention.{ours}{end}", f"{rows}{columns}")
        for name, ours, rows in (("Wq", "query", "HK"), ("Wk", "key", "NK"), ("Wv", "value", "NK"))
        for kind, end, columns in (("weight", "", " D"), ("bias", "_bias", ""))
    } | {
        f"{_ATTENTION}.dense.weight": ("attention.out", "D HK"),
        f"{_ATTENTION}.dense.bias": ("attention.out_bias", "D"),
        "layernorm1.weight": ("attention_norm.gain", "D"),
        "layernorm1.bias": ("attention_norm.bias", "D"),
        "layernorm2.weight": ("mlp_norm.gain", "D"),
        "layernorm2.bias": ("mlp_norm.bias", "D"),
        "ffn.0.weight": ("mlp.up", "F D"),
        "ffn.0.bias": ("mlp.up_bias", "F"),
        "ffn.2.weight": ("mlp.down", "D F"),
        "ffn.2.bias": ("mlp.down_bias", "D"),
    },
    only={"layer_norm_epsilon": 1e-6},  # of the last norm; that of the layers is 1e-6 whatever it says
    unused="n_ctx from_tf attn_pdrop",
    buffers="pos_encoding",
)  # fmt: skip
