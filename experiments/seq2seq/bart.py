r"""BART, base and large: the text of a text with noise (arXiv 1910.13461, sections 2 and 5.1).

    scaling train --config=experiments/seq2seq/bart.py:base --config.data.train='gs://bucket/corpus/*.jsonl.gz'

Three tenths of the tokens are in spans that become one mask each, and all sentences are permuted. Batches of 8,000
rows, 500,000 steps, GPT-2's tokenizer. The paper does not give the length of rows, the learning rate and its schedule:
those of RoBERTa are used, whose setup it follows, and dropout stays 0.1 to the end, which the paper ends at nine
tenths.

Machine: for base eight accelerators with 16 GB and --config.train.microbatch_sequences=128.
Time and loss: not measured here. The paper does not say what was used.
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config(size: str = "base") -> ConfigDict:
    config = recipes.encoder_decoder("BART", size, (512, 512), 8000, 500_000, beta2=0.98, epsilon=1e-6)
    config.data.objective = "denoising"
    config.optimizer.schedule = "linear"
    config.optimizer.final_fraction = 0.0
    config.optimizer.weight_decay = 0.01
    config.optimizer.warmup_tokens = {"base": 24_000, "large": 30_000}[size] * config.train.batch_tokens
    return config
