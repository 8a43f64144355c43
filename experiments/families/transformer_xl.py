r"""Transformer-XL, base: 151M parameters for WikiText-103, with a memory of the segment before (arXiv 1901.02860).

    scaling train --config=experiments/families/transformer_xl.py:base --config.data.train='wikitext/*.jsonl.gz' \
        --config.data.tokenizer=FILE

Segments of 150 tokens with a memory of 150, 200,000 steps of 9,000 tokens, Adam with lr 2.5e-4 and a cosine to 0, as in
the authors' run_wt103_base.sh. A row has six segments, and the first of them has no memory; the paper carries it over
from step to step. The paper's adaptive softmax and input are left out: all words have logits at once, from the same
matrix. It needs a tokenizer of 267,735 words.

Machine: four accelerators with 16 GB.
Time and loss: not measured here. The paper has a perplexity of 24.0 a word (loss 3.18).
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config(size: str = "base") -> ConfigDict:
    config = recipes.family(
        "Transformer-XL", size, 200_000 * 9000, beta2=0.999, weight_decay=0.0, clip_norm=0.25, final_fraction=0.0
    )
    config.model.dropout_embedding = config.model.dropout_residual = 0.1
    config.optimizer.warmup_tokens = 0
    return config
