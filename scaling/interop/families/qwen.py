"""Qwen2: LLaMA with biases of queries, keys and values. Qwen3: with norms of queries and keys. Windows by layer."""

from scaling.interop.families.llama import varied
from scaling.interop.family import Key

_HEADS = Key("num_key_value_heads", "num_kv_heads", 32)

QWEN2 = varied(
    "qwen2",
    "Qwen2",
    (_HEADS,),
    without="attention_bias mlp_bias head_dim",
    fixed={"qkv_bias": True, "out_bias": False, "mlp_bias": False},
    windows="layer_types",
)
QWEN3 = varied(
    "qwen3",
    "Qwen3",
    (_HEADS, Key("head_dim", "d_head", 128)),
    without="mlp_bias",
    fixed={"mlp_bias": False, "qk_norm": True},
    windows="layer_types",
)
