"""BART: an encoder and a decoder with norms after sums, as BERT's and GPT-1's (arXiv 1910.13461)."""

from scaling.interop.families.bert import attention, block, norm
from scaling.interop.family import ACTIVATIONS, Family, Key

_ATTENTION = "{0}.q_proj {0}.k_proj {0}.v_proj {0}.out_proj {0}_layer_norm"


def _ends(theirs: str, ours: str) -> dict[str, tuple[str, str]]:
    return {f"{theirs}.embed_positions.weight": (f"{ours}positions", "P S")} | norm(
        f"{theirs}.layernorm_embedding", f"{ours}embedding_norm", "S"
    )


_INSIDE = block(_ATTENTION.format("self_attn") + " fc1 fc2 final_layer_norm")

BART = Family(
    "bart", "BartForConditionalGeneration", "model.", "decoder.layers.",
    keys=(
        Key("vocab_size", "vocab_size", 50_265),
        Key("max_position_embeddings", "context_length", 1024),
        Key("d_model", "d_model", 1024),
        Key("encoder_layers", "encoder_layers", 12),
        Key("decoder_layers", "num_layers", 12),
        Key("encoder_attention_heads decoder_attention_heads", "num_heads", 16),
        Key("encoder_ffn_dim decoder_ffn_dim", "d_ff", 4096),
        Key("activation_function", "activation", "gelu", ACTIVATIONS),
        Key("scale_embedding", "scaled_embedding", False),
        Key("dropout", "dropout_embedding dropout_residual", 0.1),
        Key("attention_dropout", "dropout_attention", 0.0),
        Key("init_std", "init_std", 0.02),
    ),
    fixed={"norm": "post", "embedding_norm": True, "position_offset": 2, "logit_bias": True},
    outside={"shared.weight": ("tokens", "V W"), "final_logits_bias": ("logit_bias", "1 V")}
    | _ends("encoder", "encoder.")
    | _ends("decoder", "")
    | {"lm_head.weight": ("unembedding", "V W")},
    inside=_INSIDE | attention(_ATTENTION.format("encoder_attn").split(), "cross"),
    encoder_layers="encoder.layers.",
    inside_encoder=_INSIDE,
    only={
        "is_encoder_decoder": True, "tie_word_embeddings": True, "normalize_before": False,
        "normalize_embedding": True, "add_final_layer_norm": False, "add_bias_logits": False,
        "static_position_embeddings": False,
    },
    unused=(
        "num_hidden_layers encoder_layerdrop decoder_layerdrop activation_dropout classifier_dropout classif_dropout "
        "extra_pos_embeddings"
    ),
    buffers=r"(encoder|decoder)\.embed_tokens\.weight",
)  # fmt: skip
