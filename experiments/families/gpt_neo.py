"""GPT-Neo: local attention in every other layer, 1300m and 2700m (github.com/EleutherAI/gpt-neo).

    scaling train --config=experiments/families/gpt_neo.py:1300m --config.data.train='gs://bucket/corpus/*.jsonl.gz'

Machine: for 1300m one accelerator with 80 GB, or --config.mesh.fsdp=8 with 16 GB each.
Time and loss: not measured here. The authors trained for 400,000 steps.
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config(size: str = "1300m") -> ConfigDict:
    return recipes.family("GPT-Neo", size, 380e9)
