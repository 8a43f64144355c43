"""What GGUF files of llama.cpp say, by architecture: their metadata in the words of config.json, and their layouts.

Names of tensors are in the package ``gguf`` itself. Only what a file of llama.cpp's own converter can hold is here.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from scaling.interop.family import Family

_LLAMA = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
}
_NEOX = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_epsilon": "layer_norm_eps",
    "use_parallel_residual": "use_parallel_residual",
    "rope.freq_base": "rotary_emb_base",
}
_GPT2 = {
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "block_count": "n_layer",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
_BLOOM = {
    "context_length": "seq_length",
    "embedding_length": "hidden_size",
    "block_count": "n_layer",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
_TOGETHER = {"H3K D": "3HK D", "H3K": "3HK"}  # all queries, then all keys, then all values


class Architecture(NamedTuple):
    """A ``general.architecture``.

    Attributes:
        model_type: the family that it is read as.
        keys: metadata, without the name of the architecture, to keys of config.json.
        fixed: keys of config.json that the metadata does not have, because llama.cpp computes it in one way only.
        layouts: of matrices in the family's table, to those in the file.
        turned: rows of queries and keys are in the order that turns features 2i and 2i + 1 together.
    """

    model_type: str
    keys: Mapping[str, str]
    fixed: Mapping[str, Any] = {}
    layouts: Mapping[str, str] = {}
    turned: bool = False


ARCHITECTURES = {
    "llama": Architecture("llama", _LLAMA, turned=True),  # also Mistral, whose window llama.cpp does not have
    "qwen2": Architecture("qwen2", {key: value for key, value in _LLAMA.items() if value != "head_dim"}),
    "qwen3": Architecture("qwen3", _LLAMA),
    "gemma": Architecture("gemma", _LLAMA),
    "gpt2": Architecture(
        "gpt2", _GPT2, layouts={"D 3HK": "3HK D", "HK D": "D HK", "D F": "F D", "F D": "D F"}
    ),
    # llama.cpp computes GELU by its tanh form, whatever the model was trained with.
    "gptneox": Architecture("gpt_neox", _NEOX, {"hidden_act": "gelu_fast"}, _TOGETHER),
    "bloom": Architecture("bloom", _BLOOM, layouts=_TOGETHER),
}  # fmt: skip

# Metadata that may be there and changes nothing, and metadata with the only value that we have.
UNUSED = ("tensor_data_layout", "rope.scaling.finetuned")
ONLY = {
    "expert_count": 0,
    "expert_used_count": 0,
    "attention.causal": True,
    "attention.max_alibi_bias": 8.0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "pooling_type": 0,
}
# Scaling of rotary positions, to its names in rope_scaling.
ROPE_SCALING = {
    "rope.scaling.type": "rope_type",
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}

# What other metadata must be. A list stands for a list of such values; an architecture's keys that are not here are
# numbers.
KINDS: dict[str, Any] = {
    "split.count": int,
    "tokenizer.ggml.model": str,
    "tokenizer.ggml.pre": str,
    "tokenizer.ggml.tokens": [str],
    "tokenizer.ggml.token_type": [int],
    "tokenizer.ggml.scores": [float],
    "tokenizer.ggml.merges": [str],
    "tokenizer.ggml.precompiled_charsmap": [int],
    "tokenizer.ggml.add_space_prefix": bool,
    "tokenizer.ggml.remove_extra_whitespaces": bool,
    **{f"tokenizer.ggml.add_{kind}_token": bool for kind in ("bos", "eos", "sep")},
    **{f"tokenizer.ggml.{kind}_token_id": int for kind in ("bos", "eos", "unknown", "padding")},
}
_WORDS = {int: "whole number", float: "number", str: "text", bool: "truth value"}


def check_kind(name: str, value: Any, kind: Any, where: str) -> None:
    """Refuses metadata that is not of its kind, which is a type or a list of one type; ``where`` is the file."""
    one = kind[0] if isinstance(kind, list) else kind
    values = value if isinstance(kind, list) and isinstance(value, list) else [value]
    allowed = (int, float) if one is float else (one,)
    right = isinstance(value, list) or not isinstance(kind, list)
    if not right or not all(
        isinstance(each, allowed) and (one is bool or not isinstance(each, bool)) for each in values
    ):
        words = f"a list, each a {_WORDS[one]}" if isinstance(kind, list) else f"a {_WORDS[one]}"
        shown = repr(value) if len(repr(value)) < 60 else f"{repr(value)[:60]}..."
        raise ValueError(f"{where}: {name} must be {words}, got {shown}")


def stored(family: Family, architecture: Architecture) -> Family:
    """The family's table with the layouts of a GGUF file, in which the gains of norms are whole."""

    def changed(table: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
        layouts = architecture.layouts
        return {name: (ours, layouts.get(layout, layout)) for name, (ours, layout) in table.items()}

    return dataclasses.replace(family, inside=changed(family.inside), plus_one=False)
