r"""LaMDA: T5's relative positions and a gated GELU, 137b (arXiv 2201.08239).

    scaling train --config=experiments/families/lamda.py:137b --config.data.train='gs://bucket/corpus/*.jsonl.gz' \
        --config.data.tokenizer=FILE

Machine: 1,024 accelerators with 32 GB, with --config.mesh.fsdp=1024.
Time and loss: not measured here. The paper: 57.7 days on 1,024 TPU v3; its
optimizer is not given.
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config(size: str = "137b") -> ConfigDict:
    return recipes.family("LaMDA", size, 2.81e12)
