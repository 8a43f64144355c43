r"""GPT-NeoX-20B (arXiv 2204.06745).

    scaling train --config=experiments/families/gpt_neox.py:20b --config.data.train='gs://bucket/corpus/*.jsonl.gz' \
        --config.data.tokenizer=FILE

Machine: 96 accelerators with 40 GB, with --config.mesh.fsdp=96.
Time and loss: not measured here. The paper: 96 A100 for about two months.
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config(size: str = "20b") -> ConfigDict:
    return recipes.family("GPT-NeoX", size, 472e9, weight_decay=0.01)
