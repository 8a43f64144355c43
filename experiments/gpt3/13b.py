"""GPT-3 13B: 40 layers, d_model 5120, 40 heads of 128; 12.9B parameters, 300B tokens (arXiv 2005.14165).

    scaling train --config=experiments/gpt3/13b.py --config.data.train='gs://bucket/corpus/*.jsonl.gz'
    scaling train --config=experiments/gpt3/13b.py:v5p:4x4x8 ...  (TPUs: v5e:16x16, v5p:4x4x8 or v6e:8x16)

Machine: 64 accelerators with 32 GB or more (16 shards of the parameters, 4-way tensor parallel).
    On 256, --config.train.ramp_start_tokens=131072 gives each batch shard a sequence.
Time and loss: not measured here. The paper's cost is 268 PF-days.
The paper prints d_model 5140; 5120 is the consistent reading (see scaling/catalog/sizes.py).
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config(topology: str = "") -> ConfigDict:
    return recipes.gpt3("13b", topology, fsdp=16, tensor=4, remat="full")
