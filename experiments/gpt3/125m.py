"""GPT-3 Small: 12 layers, d_model 768, 12 heads of 64; 125M parameters, 300B tokens (arXiv 2005.14165).

    scaling train --config=experiments/gpt3/125m.py --config.data.train='gs://bucket/corpus/*.jsonl.gz'
    scaling train --config=experiments/gpt3/125m.py:v5p:2x2x1 ...  (TPUs: v5e:2x4, v5p:2x2x1 or v6e:2x2)

Machine: one accelerator with 16 GB or more, or any number that divides the ramp's first 16 sequences.
Time and loss: not measured here. The paper's cost is 2.6 PF-days.
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config(topology: str = "") -> ConfigDict:
    return recipes.gpt3("125m", topology)
