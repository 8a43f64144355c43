"""GPT-3 6.7B: 32 layers, d_model 4096, 32 heads of 128; 6.7B parameters, 300B tokens (arXiv 2005.14165).

    scaling train --config=experiments/gpt3/6700m.py --config.data.train='gs://bucket/corpus/*.jsonl.gz'
    scaling train --config=experiments/gpt3/6700m.py:v5p:4x4x4 ...  (TPUs: v5e:8x16, v5p:4x4x4 or v6e:8x8)

Machine: 16 accelerators with 32 GB or more. On more, raise the first batch of the ramp:
    for 64, --config.train.ramp_start_tokens=131072.
Time and loss: not measured here. The paper's cost is 139 PF-days.
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config(topology: str = "") -> ConfigDict:
    return recipes.gpt3("6700m", topology, fsdp=16, remat="full")
