"""GPT-2 and GPT-1. Their Conv1D weights are [in, out] like ours; queries, keys and values are one."""

from scaling.interop.family import ACTIVATIONS, Family, Key

_QKV = "attention.query attention.key attention.value"
_SIZES = (
    Key("vocab_size", "vocab_size"),
    Key("n_positions", "context_length"),
    Key("n_embd", "d_model"),
    Key("n_layer", "num_layers"),
    Key("n_head", "num_heads"),
    Key("layer_norm_epsilon", "norm_epsilon", 1e-5),
    Key("tie_word_embeddings", "tied_embedding", True),
    Key("embd_pdrop", "dropout_embedding", 0.1),
    Key("attn_pdrop", "dropout_attention", 0.1),
    Key("resid_pdrop", "dropout_residual", 0.1),
    Key("initializer_range", "init_std", 0.02),
)
_INSIDE = {
    "ln_1.weight": ("attention_norm.gain", "D"),
    "ln_1.bias": ("attention_norm.bias", "D"),
    "attn.c_attn.weight": (_QKV, "D 3HK"),
    "attn.c_attn.bias": ("attention.query_bias attention.key_bias attention.value_bias", "3HK"),
    "attn.c_proj.weight": ("attention.out", "HK D"),
    "attn.c_proj.bias": ("attention.out_bias", "D"),
    "ln_2.weight": ("mlp_norm.gain", "D"),
    "ln_2.bias": ("mlp_norm.bias", "D"),
    "mlp.c_fc.weight": ("mlp.up", "D F"),
    "mlp.c_fc.bias": ("mlp.up_bias", "F"),
    "mlp.c_proj.weight": ("mlp.down", "F D"),
    "mlp.c_proj.bias": ("mlp.down_bias", "D"),
}
_HEAD = {"lm_head.weight": ("unembedding", "V W")}
_ENDS = {"ln_f.weight": ("final_norm.gain", "D"), "ln_f.bias": ("final_norm.bias", "D")}
_MASKS = r"h\.\d+\.attn\.(bias|masked_bias)"  # causal masks that old versions saved

GPT2 = Family(
    "gpt2", "GPT2LMHeadModel", "transformer.", "h.",
    keys=(*_SIZES, Key("activation_function", "activation", "gelu_tanh", ACTIVATIONS), Key("n_inner", "d_ff", None)),
    fixed={},
    outside={"wte.weight": ("tokens", "V W"), "wpe.weight": ("positions", "P S")} | _ENDS | _HEAD,
    inside=_INSIDE,
    only={"scale_attn_weights": True, "add_cross_attention": False},
    unused="reorder_and_upcast_attn n_ctx",  # scores and softmax are float32 here in any case
    buffers=_MASKS,
    scaled_by_layer="scale_attn_by_inverse_layer_idx",
)  # fmt: skip

GPT1 = Family(
    "openai-gpt", "OpenAIGPTLMHeadModel", "transformer.", "h.",
    # Its "gelu" is the tanh form. It has no n_inner, and ignores one.
    keys=(*_SIZES, Key("afn", "activation", "gelu_tanh", {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu"})),
    fixed={"norm": "post", "scale_residual_init": False},
    outside={"tokens_embed.weight": ("tokens", "V W"), "positions_embed.weight": ("positions", "P S")} | _HEAD,
    inside=_INSIDE,
    unused="n_inner n_ctx n_special predict_special_tokens",
    buffers=_MASKS,
)  # fmt: skip
