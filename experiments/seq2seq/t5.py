r"""T5 from small to 11b, T5 1.1 from small to xxl, and mT5: spans become sentinels (arXiv 1910.10683; mT5: 2010.11934).

    scaling train --config=experiments/seq2seq/t5.py:base --config.data.train='gs://bucket/c4/*.jsonl.gz' \
        --config.data.tokenizer=TOKENIZER.model+sentinels
    scaling train --config=experiments/seq2seq/t5.py:xl,T5-1.1 ...
    scaling train --config=experiments/seq2seq/t5.py:small,mT5 ...

Sources of 512 tokens, which 568 tokens of text become, and targets of 114 (section 3.1.4). mT5 has sources of 1,024.
Batches of 2,048 rows (mT5: 1,024) and a million steps (section 3.7); section 3.1.2's baseline has 128 rows and 2^19
steps. AdaFactor with a learning rate of 1 / sqrt(max(step, 10,000)), dropout 0.1, without dropout from version 1.1 on.

Machine: for base eight accelerators with 16 GB and --config.train.microbatch_sequences=256.
Time and loss: not measured here. The paper used slices of TPU v3 pods.
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes

TARGETS = {512: 114, 1024: 229}  # tokens by those of the source


def get_config(model: str = "base") -> ConfigDict:
    size, _, family = model.partition(",")
    family = family or "T5"
    source, rows = (1024, 1024) if family == "mT5" else (512, 2048)
    lengths = source, TARGETS[source]
    config = recipes.encoder_decoder(family.replace("-", " "), size, lengths, rows, 1_000_000, name="adafactor")
    config.optimizer.schedule = "inverse_sqrt"
    config.data.objective = "span_corruption"
    config.optimizer.warmup_tokens = 0
    config.optimizer.decay_tokens = 10_000 * config.train.batch_tokens
    if family != "T5":
        config.model.dropout_embedding = config.model.dropout_attention = config.model.dropout_residual = 0.0
    return config
