"""GPT-3 2.7B: 32 layers, d_model 2560, 32 heads of 80; 2.7B parameters, 300B tokens (arXiv 2005.14165).

    scaling train --config=experiments/gpt3/2700m.py --config.data.train='gs://bucket/corpus/*.jsonl.gz'
    scaling train --config=experiments/gpt3/2700m.py:v5p:2x4x4 ...  (TPUs: v5e:8x8, v5p:2x4x4 or v6e:4x8)

Machine: 8 or 16 accelerators with 32 GB or more (parameters and optimizer state shared by 8).
Time and loss: not measured here. The paper's cost is 55.2 PF-days.
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config(topology: str = "") -> ConfigDict:
    return recipes.gpt3("2700m", topology, fsdp=8, remat="projections")
