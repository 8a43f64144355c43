r"""ELECTRA, small, base and large: which tokens has a generator replaced (arXiv 2003.10555, table 6).

    scaling train --config=experiments/encoders/electra.py:small --config.data.train='gs://bucket/corpus/*.jsonl.gz' \
        --config.data.tokenizer=TOKENIZER.model+mask
    scaling align finetune --config=encoders/finetune --task=rte --config.start=runs/electra-small \
        --config.data.train=FOLDER

The generator has as many layers as the discriminator, and a quarter of its width (base: a third), and the embeddings
are one parameter of both. Small: batches of 128 rows of 128 tokens, a million steps, lr 5e-4. Base: 256 rows of 512
tokens, 766,000 steps, lr 2e-4. Large: 2,048 rows of 512 tokens, of which a quarter are hidden, 400,000 steps, lr 2e-4.
The warm-up has 10,000 steps, and the decay is linear.

Machine: for small one accelerator with 16 GB, for base the same with --config.train.microbatch_sequences=64.
Time and loss: not measured here. The paper trained small on one V100 GPU for four days.
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes

STEPS = {"small": 1_000_000, "base": 766_000, "large": 400_000}
SHARE = {"small": 4, "base": 3, "large": 4}  # the discriminator's width is so many times the generator's


def get_config(size: str = "small") -> ConfigDict:
    config = recipes.encoder("ELECTRA", size, STEPS.get(size, 1), beta2=0.999, epsilon=1e-6)
    config.data.objective = "replaced_token"
    config.model.generator_layers = config.model.num_layers
    config.model.generator_width = config.model.d_model // SHARE[size]
    config.noise.rate = 0.25 if size == "large" else 0.15
    config.noise.random = config.noise.kept = 0.0
    config.train.sequence_length = 128 if size == "small" else 512
    config.optimizer.warmup_tokens = 10_000 * config.train.batch_tokens
    return config
