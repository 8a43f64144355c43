r"""LLaMA: RMSNorm, SwiGLU, rotary positions; 7b to 65b (arXiv 2302.13971).

    scaling train --config=experiments/families/llama.py:7b --config.data.train='gs://bucket/corpus/*.jsonl.gz' \
        --config.data.tokenizer=FILE

Machine: for 7b 16 accelerators with 32 GB, with --config.mesh.fsdp=16.
Time and loss: not measured here. The paper: 82,432 GPU hours (A100) for 7b.
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config(size: str = "7b") -> ConfigDict:
    return recipes.family("LLaMA", size, 1.0e12 if size in ("7b", "13b") else 1.4e12)
