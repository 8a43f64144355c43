"""GPT-2 with 48 layers, d_model 1600, 25 heads; 1,558M parameters (Radford et al. 2019, table 2).

    scaling train --config=experiments/gpt2/1558m.py --config.data.train='webtext/*.jsonl.gz'

Machine: 4 accelerators with 32 GB or more, with --config.train.microbatch_sequences=32.
Time and loss: not measured here. The paper leaves learning rate, schedule and length open:
scaling/catalog/recipes.py says what is used.
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config() -> ConfigDict:
    return recipes.gpt2("1558m", fsdp=4, remat="projections")
