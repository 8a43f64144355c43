r"""Mixtral 8x7B: eight experts in each layer, of which a token takes two (arXiv 2401.04088).

    scaling train --config=experiments/families/mixtral.py:8x7b --config.data.train='gs://bucket/corpus/*.jsonl.gz' \
        --config.data.tokenizer=FILE

Machine: 64 accelerators with 32 GB, with --config.mesh.expert=8 --config.mesh.fsdp=8.
Time and loss: not measured here. The paper gives neither data nor length.
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config(size: str = "8x7b") -> ConfigDict:
    return recipes.family("Mixtral", size, 2.0e12, peak_lr=3e-4)
