"""GPT-J: features 2i and 2i + 1 turn together; attention and MLP side by side with one norm; the head has a bias."""

from scaling.interop.family import ACTIVATIONS, Family, Key

GPTJ = Family(
    "gptj", "GPTJForCausalLM", "transformer.", "h.",
    keys=(
        Key("vocab_size", "vocab_size"),
        Key("n_positions", "context_length"),
        Key("n_embd", "d_model"),
        Key("n_layer", "num_layers"),
        Key("n_head", "num_heads"),
        Key("n_inner", "d_ff", None),
        Key("rotary_dim", "rotary.dim"),  # with null, transformers turns all features at rates of another width
        Key("activation_function", "activation", "gelu_tanh", ACTIVATIONS),
        Key("layer_norm_epsilon", "norm_epsilon", 1e-5),
        Key("tie_word_embeddings", "tied_embedding", False),
        Key("embd_pdrop", "dropout_embedding", 0.0),
        Key("attn_pdrop", "dropout_attention", 0.0),
        Key("resid_pdrop", "dropout_residual", 0.0),
        Key("initializer_range", "init_std", 0.02),
    ),
    fixed={
        "positions": "rotary", "rotary.interleaved": True, "parallel": "one_norm", "logit_bias": True,
        "qkv_bias": False, "out_bias": False,
    },
    outside={
        "wte.weight": ("tokens", "V W"),
        "ln_f.weight": ("final_norm.gain", "D"),
        "ln_f.bias": ("final_norm.bias", "D"),
        "lm_head.weight": ("unembedding", "V W"),
        "lm_head.bias": ("logit_bias", "V"),
    },
    inside={
        "ln_1.weight": ("attention_norm.gain", "D"),
        "ln_1.bias": ("attention_norm.bias", "D"),
        "attn.q_proj.weight": ("attention.query", "HK D"),
        "attn.k_proj.weight": ("attention.key", "NK D"),
        "attn.v_proj.weight": ("attention.value", "NK D"),
        "attn.out_proj.weight": ("attention.out", "D HK"),
        "mlp.fc_in.weight": ("mlp.up", "F D"),
        "mlp.fc_in.bias": ("mlp.up_bias", "F"),
        "mlp.fc_out.weight": ("mlp.down", "D F"),
        "mlp.fc_out.bias": ("mlp.down_bias", "D"),
    },
    only={"scale_attn_weights": True, "rotary": True},
    unused="n_ctx",
    buffers=r"h\.\d+\.attn\.(bias|masked_bias|embed_positions)",
)  # fmt: skip
