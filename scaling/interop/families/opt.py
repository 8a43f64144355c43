"""OPT: its position table has two rows before the first position. OPT-350m: narrow embeddings, norms after sums."""

from scaling.interop.family import ACTIVATIONS, Family, Key

OPT = Family(
    "opt", "OPTForCausalLM", "model.decoder.", "layers.",
    keys=(
        Key("vocab_size", "vocab_size"),
        Key("max_position_embeddings", "context_length"),
        Key("hidden_size", "d_model"),
        Key("num_hidden_layers", "num_layers"),
        Key("num_attention_heads", "num_heads"),
        Key("ffn_dim", "d_ff"),
        Key("word_embed_proj_dim", "embedding_width", 0),
        Key("activation_function", "activation", "relu", ACTIVATIONS),
        Key("do_layer_norm_before", "norm", "pre", {True: "pre", False: "post"}),
        Key("enable_bias", "qkv_bias out_bias mlp_bias", True),
        Key("tie_word_embeddings", "tied_embedding", True),
        Key("dropout", "dropout_residual", 0.1),
        Key("attention_dropout", "dropout_attention", 0.0),
        Key("init_std", "init_std", 0.02),
    ),
    fixed={"position_offset": 2},
    outside={
        "embed_tokens.weight": ("tokens", "V W"),
        "embed_positions.weight": ("positions", "P S"),
        "project_in.weight": ("project_in", "D W"),
        "project_out.weight": ("project_out", "W D"),
        "final_layer_norm.weight": ("final_norm.gain", "D"),
        "final_layer_norm.bias": ("final_norm.bias", "D"),
        "lm_head.weight": ("unembedding", "V W"),
    },
    inside={
        f"self_attn.{name}_proj.{kind}": (f"attention.{ours}{end}", f"{rows}{columns}")
        for name, ours, rows in (("q", "query", "HK"), ("k", "key", "NK"), ("v", "value", "NK"))
        for kind, end, columns in (("weight", "", " D"), ("bias", "_bias", ""))
    } | {
        "self_attn.out_proj.weight": ("attention.out", "D HK"),
        "self_attn.out_proj.bias": ("attention.out_bias", "D"),
        "self_attn_layer_norm.weight": ("attention_norm.gain", "D"),
        "self_attn_layer_norm.bias": ("attention_norm.bias", "D"),
        "fc1.weight": ("mlp.up", "F D"),
        "fc1.bias": ("mlp.up_bias", "F"),
        "fc2.weight": ("mlp.down", "D F"),
        "fc2.bias": ("mlp.down_bias", "D"),
        "final_layer_norm.weight": ("mlp_norm.gain", "D"),
        "final_layer_norm.bias": ("mlp_norm.bias", "D"),
    },
    only={"_remove_final_layer_norm": False, "layer_norm_elementwise_affine": True},
    unused="layerdrop prefix",
)  # fmt: skip
