"""A small run for tests that uses everything: ramp, accumulation, validation, checkpoints, samples.

    scaling train --config=experiments/cpu/smoke.py

Machine: one CPU core, a few seconds. The model is too small for a good loss, so none is given.
"""

from ml_collections import ConfigDict

from scaling.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.tokenizer = "bytes"

    config.model.context_length = 32
    config.model.num_layers = 2
    config.model.d_model = 32
    config.model.num_heads = 2
    config.model.attention_pattern = ("dense", "banded")
    config.model.band_width = 8
    config.compute.dtype = "float32"

    config.train.tokens = 8_192
    config.train.batch_tokens = 512
    config.train.ramp_start_tokens = 256
    config.train.ramp_tokens = 2_048
    config.train.microbatch_sequences = 8
    config.compute.loss_chunk = 16

    config.optimizer.peak_lr = 1e-2
    config.optimizer.warmup_tokens = 1_024

    config.eval.every_steps = 8
    config.eval.tokens = 1_024
    config.log.every_steps = 1
    config.checkpoint.every_steps = 8
    config.sample.prompts = ("The ",)
    config.sample.tokens = 16
    return config
