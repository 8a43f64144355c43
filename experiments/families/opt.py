"""OPT: GPT-3's shapes as Meta trained them, 125m to 175b (arXiv 2205.01068).

    scaling train --config=experiments/families/opt.py:1300m --config.data.train='gs://bucket/corpus/*.jsonl.gz'

Machine: for 1300m one accelerator with 80 GB, or --config.mesh.fsdp=8 with 16 GB each.
Time and loss: not measured here. The paper gives curves, and 992 GPUs for 175b.
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config(size: str = "1300m") -> ConfigDict:
    return recipes.family("OPT", size, 180e9, schedule="linear", clip_norm=1.0)
