r"""DeBERTa, base and large: hidden tokens, with scores of contents and distances (arXiv 2006.03654).

    scaling train --config=experiments/encoders/deberta.py:base --config.data.train='gs://bucket/corpus/*.jsonl.gz' \
        --config.data.tokenizer=gpt2+mask

Batches of 2,048 rows of 512 tokens, a million steps, lr 2e-4 with 10,000 steps of warm-up and a linear decay, dropout
0.1 (appendix A.2). The enhanced mask decoder (section 3.2), which adds absolute positions before the logits, is left
out, as in transformers; with --config.model.disentangled.absolute=true they are added to the embeddings, as in BERT.
Single tokens are hidden, and no spans.

Machine: for base eight accelerators with 32 GB and --config.train.microbatch_sequences=64; scores are whole in float32.
Time and loss: not measured here. The paper used 64 V100 GPUs for ten days for base.
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config(size: str = "base") -> ConfigDict:
    return recipes.encoder("DeBERTa", size, 1_000_000, beta2=0.999, epsilon=1e-6)
