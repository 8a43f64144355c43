"""GPT-3 Medium: 24 layers, d_model 1024, 16 heads of 64; 356M parameters, 300B tokens (arXiv 2005.14165).

    scaling train --config=experiments/gpt3/350m.py --config.data.train='gs://bucket/corpus/*.jsonl.gz'
    scaling train --config=experiments/gpt3/350m.py:v5p:2x2x2 ...  (TPUs: v5e:4x4, v5p:2x2x2 or v6e:2x4)

Machine: one accelerator with 24 GB or more, or any number that divides the ramp's first 16 sequences.
Time and loss: not measured here. The paper's cost is 7.42 PF-days.
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config(topology: str = "") -> ConfigDict:
    return recipes.gpt3("350m", topology)
