"""XLNet: Transformer-XL's relative attention on both sides, types of tokens in scores, and a query stream.

Its config has no context length; as BLOOM's, it may have the trained seq_length. Types are those of its tokenizer: two
texts, the two tokens around them, and padding.
"""

from scaling.interop.family import ACTIVATIONS, Family, Key

_ATTENTION = {
    "q": ("query", "D H K"),
    "k": ("key", "D N K"),
    "v": ("value", "D N K"),
    "o": ("out", "D H K"),
    "r": ("relative.position", "D H K"),
    "r_w_bias": ("relative.content_bias", "H K"),
    "r_r_bias": ("relative.position_bias", "H K"),
    "r_s_bias": ("relative.type_bias", "H K"),
    "seg_embed": ("relative.types", "2 H K"),
}

XLNET = Family(
    "xlnet", "XLNetLMHeadModel", "transformer.", "layer.",
    keys=(
        Key("vocab_size", "vocab_size", 32_000),
        Key("seq_length", "context_length", 512),
        Key("d_model", "d_model", 1024),
        Key("n_layer", "num_layers", 24),
        Key("n_head", "num_heads", 16),
        Key("d_head", "d_head", 0),
        Key("d_inner", "d_ff", 4096),
        Key("ff_activation", "activation", "gelu", ACTIVATIONS),
        Key("layer_norm_eps", "norm_epsilon", 1e-12),
        Key("dropout", "dropout_embedding dropout_attention dropout_residual", 0.1),
        Key("initializer_range", "init_std", 0.02),
        Key("tie_word_embeddings", "tied_embedding", True),
    ),
    fixed={
        "positions": "xlnet", "causal": False, "norm": "post", "token_types": 5, "logit_bias": True,
        "qkv_bias": False, "out_bias": False, "scale_residual_init": False,
    },
    outside={
        "word_embedding.weight": ("tokens", "V W"),
        "mask_emb": ("query_embedding", "1 1 D"),
        "lm_loss.weight": ("unembedding", "V W"),
        "lm_loss.bias": ("logit_bias", "V"),
    },
    inside={f"rel_attn.{name}": (f"attention.{ours}", layout) for name, (ours, layout) in _ATTENTION.items()} | {
        "rel_attn.layer_norm.weight": ("attention_norm.gain", "D"),
        "rel_attn.layer_norm.bias": ("attention_norm.bias", "D"),
        "ff.layer_1.weight": ("mlp.up", "F D"),
        "ff.layer_1.bias": ("mlp.up_bias", "F"),
        "ff.layer_2.weight": ("mlp.down", "D F"),
        "ff.layer_2.bias": ("mlp.down_bias", "D"),
        "ff.layer_norm.weight": ("mlp_norm.gain", "D"),
        "ff.layer_norm.bias": ("mlp_norm.bias", "D"),
    },
    only={"attn_type": "bi", "bi_data": False, "clamp_len": -1, "same_length": False, "untie_r": True},
    # Memories are an argument of transformers' model, which has none unless it is given.
    unused="mem_len reuse_len use_mems_eval use_mems_train use_mems start_n_top end_n_top summary_last_dropout",
)  # fmt: skip
