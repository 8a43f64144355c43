r"""The Transformer, base and big, for translation (arXiv 1706.03762, section 5 and table 3).

    scaling train --config=experiments/seq2seq/transformer.py:base --config.data.train='gs://bucket/wmt14/*.jsonl.gz' \
        --config.data.source_key=en --config.data.target_key=de --config.data.tokenizer=TOKENIZER.model

Records have a source and a target. One tokenizer of about 37,000 pieces serves both languages. 100,000 steps, for big
300,000; label smoothing 0.1; the learning rate is that of equation 3, with 4,000 steps of warm-up. The paper fills its
batches with about 25,000 tokens of source and as many of target. Here a row is a pair, padded to 128 tokens; 896 pairs
of 28 tokens are as many. Longer pairs are refused, or left out with ``--config.data.bad_records=skip``.

Machine: for base one accelerator with 16 GB and --config.train.microbatch_sequences=128.
Time and loss: not measured here. The paper used eight P100 GPUs, 12 hours for base and 3.5 days for big.
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config(size: str = "base") -> ConfigDict:
    steps = {"base": 100_000, "big": 300_000}.get(size, 0)
    config = recipes.encoder_decoder(
        "Transformer", size, (128, 128), 896, steps, beta2=0.98, epsilon=1e-9, schedule="inverse_sqrt"
    )
    config.data.objective = "pairs"
    config.train.label_smoothing = 0.1
    config.optimizer.warmup_tokens = 4_000 * config.train.batch_tokens
    if size == "big":
        config.model.dropout_embedding = config.model.dropout_attention = config.model.dropout_residual = 0.3
    return config
