"""GPT-3 Large: 24 layers, d_model 1536, 16 heads of 96; 760M parameters, 300B tokens (arXiv 2005.14165).

    scaling train --config=experiments/gpt3/760m.py --config.data.train='gs://bucket/corpus/*.jsonl.gz'
    scaling train --config=experiments/gpt3/760m.py:v5p:2x2x2 ...  (TPUs: v5e:4x4, v5p:2x2x2 or v6e:2x4)

Machine: one accelerator with 40 GB or more, or any number that divides the ramp's first 16 sequences.
Time and loss: not measured here. The paper's cost is 15.8 PF-days.
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config(topology: str = "") -> ConfigDict:
    return recipes.gpt3("760m", topology, remat="projections")
