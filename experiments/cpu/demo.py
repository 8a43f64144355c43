"""A small GPT-3-shaped model on the embedded books, alternating dense and banded attention.

    scaling train --config=experiments/cpu/demo.py

Machine: 2 CPU cores, about two minutes. Validation loss 4.70 nats a token.
"""

from ml_collections import ConfigDict

from scaling.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.tokenizer = "books"

    config.model.context_length = 128
    config.model.num_layers = 2
    config.model.d_model = 128
    config.model.num_heads = 4
    config.model.attention_pattern = ("dense", "banded")
    config.model.band_width = 32
    config.compute.dtype = "float32"  # CPUs have no fast bfloat16

    config.train.tokens = 1_600_000  # about one epoch
    config.train.batch_tokens = 1_024  # a model this small learns more from many steps than from large batches
    config.compute.loss_chunk = 0  # the vocabulary is small

    config.optimizer.peak_lr = 4e-3
    config.optimizer.warmup_tokens = 50_000

    config.eval.every_steps = 250
    config.eval.tokens = 32_768
    config.log.every_steps = 10
    config.checkpoint.every_steps = 500
    config.sample.prompts = ("It was a dark night, and", '"My dear,"', "The captain")
    config.sample.tokens = 80
    config.sample.temperature = 0.6
    return config
