r"""XLNet, base and large: tokens are predicted in a random order (arXiv 1906.08237, sections 2 and 3.1, table 7).

    scaling train --config=experiments/encoders/xlnet.py:large --config.data.train='gs://bucket/corpus/*.jsonl.gz' \
        --config.data.tokenizer=TOKENIZER.model

Large: batches of 8,192 rows of 512 tokens, 500,000 steps, lr 4e-4 with 40,000 steps of warm-up, and the last sixth of
each order is predicted. Base has BERT's batches, steps and rate, to which the paper compares it. 117M parameters for
base and 361M for large. Left out: memory of the segment before, spans as what is predicted, the relative order of two
texts in a row, and dropout on the encodings of distances.

Machine: for base eight accelerators with 16 GB and --config.train.microbatch_sequences=64.
Time and loss: not measured here. The paper used 512 TPU v3 chips for five and a half days for large.
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config(size: str = "base") -> ConfigDict:
    config = recipes.encoder("XLNet", size, {"base": 1_000_000, "large": 500_000}[size], beta2=0.999, epsilon=1e-6)
    config.data.objective = "permutation"
    config.noise.rate = 1 / 6
    if size == "large":
        config.optimizer.warmup_tokens = 40_000 * config.train.batch_tokens
    return config
