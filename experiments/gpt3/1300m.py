"""GPT-3 XL: 24 layers, d_model 2048, 16 heads of 128; 1.3B parameters, 300B tokens (arXiv 2005.14165).

    scaling train --config=experiments/gpt3/1300m.py --config.data.train='gs://bucket/corpus/*.jsonl.gz'
    scaling train --config=experiments/gpt3/1300m.py:v5p:2x2x4 ...  (TPUs: v5e:4x8, v5p:2x2x4 or v6e:4x4)

Machine: 4, 8 or 16 accelerators with 32 GB or more (parameters and optimizer state shared by 4).
Time and loss: not measured here. The paper's cost is 27.5 PF-days.
The paper prints 24 heads; 16 is the consistent reading (see scaling/catalog/sizes.py).
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config(topology: str = "") -> ConfigDict:
    return recipes.gpt3("1300m", topology, fsdp=4, remat="projections")
