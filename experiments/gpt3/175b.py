"""GPT-3 175B: 96 layers, d_model 12288, 96 heads of 128; 174.6B parameters, 300B tokens (arXiv 2005.14165).

    scaling train --config=experiments/gpt3/175b.py --config.data.train='gs://bucket/corpus/*.jsonl.gz'
    scaling train --config=experiments/gpt3/175b.py:v5p:8x8x16 ...  (TPUs: v5p:8x8x8 or v5p:8x8x16)

Machine: 128 accelerators with 80 GB or more (16 shards of the parameters, 8-way tensor parallel).
    On 1,024, --config.train.ramp_start_tokens=262144 gives each batch shard a sequence.
Time and loss: not measured here. The paper's cost is 3,640 PF-days.
The batch is 1,536 sequences, 3.1M tokens (the paper: 3.2M).
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config(topology: str = "") -> ConfigDict:
    return recipes.gpt3("175b", topology, fsdp=16, tensor=8, remat="full")
