r"""RoBERTa, base and large: BERT with more text, larger batches and no next-sentence task (arXiv 1907.11692, table 9).

    scaling train --config=experiments/encoders/roberta.py:base --config.data.train='gs://bucket/corpus/*.jsonl.gz' \
        --config.data.tokenizer=gpt2+mask

Batches of 8,000 rows of 512 tokens, 500,000 steps, lr 6e-4 (large: 4e-4) with 24,000 (30,000) steps of warm-up.

Machine: for base eight accelerators with 16 GB and --config.train.microbatch_sequences=256.
Time and loss: not measured here. The paper used 1,024 V100 GPUs for about a day for 100,000 steps.
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config(size: str = "base") -> ConfigDict:
    config = recipes.encoder("RoBERTa", size, 500_000, beta2=0.98, epsilon=1e-6)
    config.optimizer.warmup_tokens = {"base": 24_000, "large": 30_000}[size] * config.train.batch_tokens
    return config
