r"""Mistral 7B: a sliding window of 4,096 in all layers (arXiv 2310.06825).

    scaling train --config=experiments/families/mistral.py:7b --config.data.train='gs://bucket/corpus/*.jsonl.gz' \
        --config.data.tokenizer=FILE

Machine: 16 accelerators with 80 GB, with --config.mesh.fsdp=16.
Time and loss: not measured here. The paper gives neither data nor length.
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config(size: str = "7b") -> ConfigDict:
    return recipes.family("Mistral", size, 2.0e12, peak_lr=3e-4)
