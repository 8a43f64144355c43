"""GPT-J-6B: rotary positions, attention and MLP side by side (github.com/kingoflolz/mesh-transformer-jax).

    scaling train --config=experiments/families/gpt_j.py:6b --config.data.train='gs://bucket/corpus/*.jsonl.gz'

Machine: 32 accelerators with 16 GB, with --config.mesh.fsdp=32.
Time and loss: not measured here. The authors: five weeks on a TPU v3-256.
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config(size: str = "6b") -> ConfigDict:
    return recipes.family("GPT-J", size, 402e9)
