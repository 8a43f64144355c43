r"""Llama 3: grouped heads, a vocabulary of 128k, 8b to 405b (arXiv 2407.21783).

    scaling train --config=experiments/families/llama3.py:8b --config.data.train='gs://bucket/corpus/*.jsonl.gz' \
        --config.data.tokenizer=FILE

Machine: for 8b 16 accelerators with 80 GB, with --config.mesh.fsdp=16.
Time and loss: not measured here. The paper: 54 days on 16,384 H100 for 405b.
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config(size: str = "8b") -> ConfigDict:
    return recipes.family("Llama 3", size, 15.0e12)
