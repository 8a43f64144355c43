"""XLM: an encoder with embeddings of languages, which are our types of tokens, and no product before the logits."""

from collections.abc import Mapping
from typing import Any

from scaling.interop.families.bert import ENCODER, block, norm
from scaling.interop.family import Family, Key


def _one_spelling(values: Mapping[str, Any]) -> dict[str, Any]:
    """Old folders call the vocabulary n_words; a single language, or use_lang_emb=false, has no embedding."""
    found = dict(values)
    words = found.pop("n_words", None)
    if words is not None and found.setdefault("vocab_size", words) != words:
        raise ValueError(f"vocab_size={found['vocab_size']!r} and n_words={words!r} must be equal")
    uses = found.pop("use_lang_emb", True)
    if not isinstance(uses, bool | None):
        raise ValueError(f"use_lang_emb must be true or false, got {uses!r}")
    if uses is False or (found.get("n_langs") == 1 and found["n_langs"] is not True):
        found.pop("n_langs", None)
    return found


XLM = Family(
    "xlm", "XLMWithLMHeadModel", "transformer.", "",
    keys=(
        Key("vocab_size", "vocab_size", 30_145),
        Key("max_position_embeddings", "context_length", 512),
        Key("emb_dim", "d_model", 2048),
        Key("n_layers", "num_layers", 12),
        Key("n_heads", "num_heads", 16),
        Key("n_langs", "token_types", 0),
        Key("layer_norm_eps", "norm_epsilon", 1e-12),
        Key("gelu_activation", "activation", "gelu", {True: "gelu", False: "relu"}),
        Key("dropout", "dropout_embedding dropout_residual", 0.1),
        Key("attention_dropout", "dropout_attention", 0.1),
        Key("init_std", "init_std", 0.02),
    ),
    fixed=ENCODER,  # the width of the MLP is that of the stream, times 4
    outside={
        "embeddings.weight": ("tokens", "V W"),
        "position_embeddings.weight": ("positions", "P S"),
        "lang_embeddings.weight": ("types", "T S"),
        "pred_layer.proj.weight": ("unembedding", "V W"),
        "pred_layer.proj.bias": ("logit_bias", "V"),
    }
    | norm("layer_norm_emb", "embedding_norm", "S"),
    inside=block(
        "attentions.{n}.q_lin attentions.{n}.k_lin attentions.{n}.v_lin attentions.{n}.out_lin layer_norm1.{n} "
        "ffns.{n}.lin1 ffns.{n}.lin2 layer_norm2.{n}"
    ),
    only={"causal": False, "asm": False, "is_encoder": True, "tie_word_embeddings": True},
    unused=(
        # Its sinusoids are stored as if they were learned.
        "sinusoidal_embeddings embed_init_std unk_index mask_index bos_index eos_index pad_index mask_token_id lang_id "
        "id2lang lang2id start_n_top end_n_top max_vocab min_count encoder_only share_inout_emb bptt"
    ),
    buffers=r"position_ids",
    bare_class="XLMModel",
    optional={"pred_layer.proj.bias": "logit_bias"},
    respelled_keys=_one_spelling,
)  # fmt: skip
