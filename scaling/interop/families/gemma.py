"""Gemma, the first: LLaMA with scaled embeddings, a gate by GELU, and norms that store their gain less 1."""

from scaling.interop.families.llama import varied
from scaling.interop.family import Key

GEMMA = varied(
    "gemma",
    "Gemma",
    (
        Key("num_key_value_heads", "num_kv_heads", 16),
        Key("head_dim", "d_head", 256),
        # The first releases say "gelu" and mean the tanh form, as transformers does.
        Key("hidden_act", "activation", "gelu_tanh", {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu_tanh"}),
        Key("tie_word_embeddings", "tied_embedding", True),
    ),
    without="mlp_bias",
    fixed={"mlp_bias": False, "scaled_embedding": True},
    only={"use_bidirectional_attention": False, "hidden_activation": "gelu_pytorch_tanh"},
    plus_one=True,
)
