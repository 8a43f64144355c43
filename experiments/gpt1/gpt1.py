"""GPT-1: 12 post-norm layers, d_model 768, 12 heads; 117M parameters (Radford et al. 2018).

    scaling train --config=experiments/gpt1/gpt1.py --config.data.train='books/*.txt'

Machine: one accelerator with 16 GB or more.
Time and loss: not measured here. BooksCorpus and GPT-1's merges are not available; see scaling/catalog/recipes.py.
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config() -> ConfigDict:
    return recipes.gpt1()
