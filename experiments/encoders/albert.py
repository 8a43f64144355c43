r"""ALBERT, base and large: BERT whose layers share weights, with narrow embeddings (arXiv 1909.11942, section 3.1).

    scaling train --config=experiments/encoders/albert.py:base --config.data.train='gs://bucket/corpus/*.jsonl.gz' \
        --config.data.tokenizer=TOKENIZER.model+mask

Hidden tokens, and whether two texts are swapped. 11.8M parameters for base and 17.8M for large (the paper rounds to 12M
and 18M; BERT has 110M and 336M). Batches of 4,096 rows of 512 tokens, 125,000 steps, lr 1.76e-3. The paper's optimizer
is LAMB; here it is AdamW, as for BERT, and dropout is 0.

Machine: for base eight accelerators with 16 GB and --config.train.microbatch_sequences=256.
Time and loss: not measured here. The paper used 64 to 512 TPU v3 chips.
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config(size: str = "base") -> ConfigDict:
    config = recipes.encoder("BERT", size, 125_000)
    config.data.objective = "mlm_sop"
    config.model.vocab_size = 30_000
    config.model.embedding_width = 128
    config.model.narrow_embedding = True
    config.model.layer_groups = 1
    config.model.activation = "gelu_tanh"
    config.model.pooler = config.model.pair_head = True
    config.model.dropout_embedding = config.model.dropout_attention = config.model.dropout_residual = 0.0
    config.train.batch_tokens = 4096 * 512
    config.train.tokens = 125_000 * config.train.batch_tokens
    config.optimizer.warmup_tokens = 3_125 * config.train.batch_tokens
    config.optimizer.peak_lr = 1.76e-3
    return config
