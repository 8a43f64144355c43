r"""Llama 2: twice the context, and grouped heads in 70b (arXiv 2307.09288).

    scaling train --config=experiments/families/llama2.py:7b --config.data.train='gs://bucket/corpus/*.jsonl.gz' \
        --config.data.tokenizer=FILE

Machine: for 7b 16 accelerators with 32 GB, with --config.mesh.fsdp=16.
Time and loss: not measured here. The paper: 184,320 GPU hours (A100) for 7b.
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config(size: str = "7b") -> ConfigDict:
    return recipes.family("Llama 2", size, 2.0e12)
