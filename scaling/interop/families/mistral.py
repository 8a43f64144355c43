"""Mistral: LLaMA with a window in every layer, and no biases."""

from scaling.interop.families.llama import varied
from scaling.interop.family import Key

MISTRAL = varied(
    "mistral",
    "Mistral",
    (Key("num_key_value_heads", "num_kv_heads", 8),),
    without="attention_bias mlp_bias",
    fixed={"qkv_bias": False, "out_bias": False, "mlp_bias": False},
    windows="sliding_window",
)
