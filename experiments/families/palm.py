r"""PaLM: one head of keys, SwiGLU, no biases, Adafactor; 8b, 62b, 540b (arXiv 2204.02311, section 5).

    scaling train --config=experiments/families/palm.py:8b --config.data.train='gs://bucket/corpus/*.jsonl.gz' \
        --config.data.tokenizer=FILE

Machine: for 8b 32 accelerators with 32 GB, with --config.mesh.fsdp=32.
Time and loss: not measured here. The paper: 6,144 TPU v4 for 540b.
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config(size: str = "8b") -> ConfigDict:
    config = recipes.family("PaLM", size, 780e9, name="adafactor", schedule="inverse_sqrt", peak_lr=1e-2)
    config.optimizer.warmup_tokens = 0
    config.optimizer.decay_tokens = 10_000 * config.train.batch_tokens
    config.optimizer.arguments = (
        ("min_dim_size_to_factor", 1 << 30),  # the second moment is whole
        ("decay_rate", 0.8),
        ("momentum", 0.9),
        ("clipping_threshold", None),
    )
    # The paper's weight decay is the squared learning rate; ours is multiplied by the learning rate once.
    config.optimizer.weight_decay = 1e-2
    config.train.z_loss = 1e-4
    return config
