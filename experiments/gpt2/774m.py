"""GPT-2 with 36 layers, d_model 1280, 20 heads; 774M parameters (Radford et al. 2019, table 2).

    scaling train --config=experiments/gpt2/774m.py --config.data.train='webtext/*.jsonl.gz'

Machine: one accelerator with 40 GB or more, with --config.train.microbatch_sequences=16.
Time and loss: not measured here. The paper leaves learning rate, schedule and length open:
scaling/catalog/recipes.py says what is used.
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config() -> ConfigDict:
    return recipes.gpt2("774m", remat="projections")
