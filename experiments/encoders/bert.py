r"""BERT, base and large: hidden tokens, and whether two texts follow each other (arXiv 1810.04805).

    scaling train --config=experiments/encoders/bert.py:base --config.data.train='gs://bucket/corpus/*.jsonl.gz' \
        --config.data.tokenizer=TOKENIZER.model+mask
    scaling fill runs/bert-base --prompt='He went to the <|mask|>.'

Batches of 256 rows of 512 tokens, a million steps, lr 1e-4 with 10,000 steps of warm-up and a linear decay (appendix
A.2). Appendix A.2 trains nine tenths of the steps at 128 tokens: ``--config.train.sequence_length=128`` for a first
run, and ``config.start`` with it for the second.

Machine: for base one accelerator with 16 GB and --config.train.microbatch_sequences=32.
Time and loss: not measured here. The paper used 16 TPU chips for four days.
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config(size: str = "base") -> ConfigDict:
    config = recipes.encoder("BERT", size, 1_000_000, beta2=0.999)
    config.data.objective = "mlm_nsp"
    config.model.pooler = config.model.pair_head = True
    return config
