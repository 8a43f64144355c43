r"""BLOOM: ALiBi and a norm after the embedding, 560m to 176b (arXiv 2211.05100).

    scaling train --config=experiments/families/bloom.py:560m --config.data.train='gs://bucket/corpus/*.jsonl.gz' \
        --config.data.tokenizer=FILE

Machine: for 560m one accelerator with 32 GB.
Time and loss: not measured here. The paper: 384 A100 for 3.5 months for 176b.
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config(size: str = "560m") -> ConfigDict:
    return recipes.family("BLOOM", size, 341e9)
