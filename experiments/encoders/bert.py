r"""BERT, base and large: hidden tokens, and whether two texts follow each other (arXiv 1810.04805).

    scaling train --config=experiments/encoders/bert.py:base,128 --config.data.train='gs://bucket/corpus/*.jsonl.gz' \
        --config.data.tokenizer=TOKENIZER.model+mask
    scaling train --config=experiments/encoders/bert.py:base,512 --config.data.train='gs://bucket/corpus/*.jsonl.gz' \
        --config.data.tokenizer= --config.start=runs/bert-base-128
    scaling fill runs/bert-base-512 --prompt='He went to the <|mask|>.'

Batches of 256 rows, a million steps, lr 1e-4 with 10,000 steps of warm-up and a linear decay: nine tenths of the steps
with rows of 128 tokens, the rest of 512 (appendix A.2). The second run begins with the weights of the first, where its
learning rate has come to, and with new moments of Adam. ``bert.py:base`` has rows of 512 tokens throughout.

Machine: for base one accelerator with 16 GB and --config.train.microbatch_sequences=32 (with rows of 128 tokens, 128).
Time and loss: not measured here. The paper used 16 TPU chips for four days.
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes

STEPS = 1_000_000
SHORT = 900_000  # with rows of 128 tokens


def get_config(choice: str = "base") -> ConfigDict:
    size, _, length = choice.partition(",")
    if length not in ("", "128", "512"):
        raise ValueError(f"{choice!r} must be SIZE, SIZE,128 or SIZE,512")
    config = recipes.encoder("BERT", size, STEPS, beta2=0.999)
    config.data.objective = "mlm_nsp"
    config.model.pooler = config.model.pair_head = True
    if length == "128":
        config.train.sequence_length = 128
        config.train.batch_tokens = 256 * 128
        config.train.tokens = SHORT * config.train.batch_tokens
        config.optimizer.warmup_tokens = 10_000 * config.train.batch_tokens
        config.optimizer.final_fraction = _left(10_000)
    elif length == "512":
        config.train.tokens = (STEPS - SHORT) * config.train.batch_tokens
        config.optimizer.peak_lr *= _left(10_000)
        config.optimizer.warmup_tokens = 0
    return config


def _left(warmup: int) -> float:
    """The share of the learning rate that is left where the lengths change."""
    return (STEPS - SHORT) / (STEPS - warmup)
