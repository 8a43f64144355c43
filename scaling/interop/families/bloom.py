"""BLOOM: ALiBi, and a norm after the embeddings. Its config has no context length, only the trained seq_length."""

from scaling.interop.family import Family, Key

BLOOM = Family(
    "bloom", "BloomForCausalLM", "transformer.", "h.",
    keys=(
        Key("vocab_size", "vocab_size"),
        Key("seq_length", "context_length", 2048),
        Key("hidden_size", "d_model"),
        Key("n_layer", "num_layers"),
        Key("n_head", "num_heads"),
        Key("layer_norm_epsilon", "norm_epsilon", 1e-5),
        Key("tie_word_embeddings", "tied_embedding", True),
        Key("hidden_dropout", "dropout_residual", 0.0),
        Key("attention_dropout", "dropout_attention", 0.0),
        Key("initializer_range", "init_std", 0.02),
    ),
    fixed={"positions": "alibi", "embedding_norm": True},
    outside={
        "word_embeddings.weight": ("tokens", "V W"),
        "word_embeddings_layernorm.weight": ("embedding_norm.gain", "S"),
        "word_embeddings_layernorm.bias": ("embedding_norm.bias", "S"),
        "ln_f.weight": ("final_norm.gain", "D"),
        "ln_f.bias": ("final_norm.bias", "D"),
        "lm_head.weight": ("unembedding", "V W"),
    },
    inside={
        "input_layernorm.weight": ("attention_norm.gain", "D"),
        "input_layernorm.bias": ("attention_norm.bias", "D"),
        "self_attention.query_key_value.weight": ("attention.query attention.key attention.value", "H3K D"),
        "self_attention.query_key_value.bias": ("attention.query_bias attention.key_bias attention.value_bias", "H3K"),
        "self_attention.dense.weight": ("attention.out", "D HK"),
        "self_attention.dense.bias": ("attention.out_bias", "D"),
        "post_attention_layernorm.weight": ("mlp_norm.gain", "D"),
        "post_attention_layernorm.bias": ("mlp_norm.bias", "D"),
        "mlp.dense_h_to_4h.weight": ("mlp.up", "F D"),
        "mlp.dense_h_to_4h.bias": ("mlp.up_bias", "F"),
        "mlp.dense_4h_to_h.weight": ("mlp.down", "D F"),
        "mlp.dense_4h_to_h.bias": ("mlp.down_bias", "D"),
    },
    only={"apply_residual_connection_post_layernorm": False},
    unused="slow_but_exact pretraining_tp masked_softmax_fusion attention_softmax_in_fp32 bias_dropout_fusion "
    "skip_bias_add skip_bias_add_qkv offset_alibi unk_token_id n_inner",
)  # fmt: skip
