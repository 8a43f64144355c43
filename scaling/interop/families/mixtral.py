"""Mixtral: LLaMA with experts in every layer, a tensor each; transformers 5 can write one for all of a layer."""

from scaling.interop.families.llama import LLAMA, varied
from scaling.interop.family import Key, RopeKeys

_ATTENTION = {name: ours for name, ours in LLAMA.inside.items() if not name.startswith("mlp.")}
_EXPERT = "block_sparse_moe.experts.{e}"

MIXTRAL = varied(
    "mixtral",
    "Mixtral",
    (
        Key("num_key_value_heads", "num_kv_heads", 8),
        Key("rms_norm_eps", "norm_epsilon", 1e-5),
        Key("num_local_experts", "experts.count", 8),
        Key("num_experts_per_tok", "experts.per_token", 2),
    ),
    without="attention_bias mlp_bias",
    fixed={"qkv_bias": False, "out_bias": False, "mlp_bias": False},
    inside={
        **_ATTENTION,
        "block_sparse_moe.gate.weight": ("experts.router", "E D"),
        f"{_EXPERT}.w1.weight": ("experts.gate", "X D"),
        f"{_EXPERT}.w3.weight": ("experts.up", "X D"),
        f"{_EXPERT}.w2.weight": ("experts.down", "D X"),
    },
    inside_too={
        **_ATTENTION,
        "mlp.gate.weight": ("experts.router", "E D"),
        "mlp.experts.gate_up_proj": ("experts.gate experts.up", "E 2X D"),
        "mlp.experts.down_proj": ("experts.down", "E D X"),
    },
    only={"router_jitter_noise": 0.0},
    unused=f"{LLAMA.unused} output_router_logits",
    windows="sliding_window_if_given",
    rope=RopeKeys(default_theta=1e6),
    balance="router_aux_loss_coef",
)
