r"""A base model of about 6M parameters on books, an encyclopedia and web pages, for the alignment that follows.

    scaling train --config=experiments/instructgpt/base.py:FOLDER

FOLDER holds .jsonl.gz files with a field "text": books/*.jsonl.gz, wikipedia/*.jsonl.gz, c4/*.jsonl.gz.

Machine: 2 CPU cores, half an hour. The time is for 8M tokens of the 12M that 44 MB of text are for the embedded
tokenizer; the loss on held-out text is 3.71 nats a token then (docs/results/instructgpt).
"""

from ml_collections import ConfigDict

from scaling.catalog import families
from scaling.config import default_config

PARTS = (("books", 0.6), ("wikipedia", 0.33), ("c4", 0.07))  # about the sizes of the three


def get_config(folder: str = "data") -> ConfigDict:
    config = default_config()
    config.data.train = ""
    config.data.mixture = tuple((f"{folder}/{part}/*.jsonl.gz", weight) for part, weight in PARTS)
    config.data.tokenizer = "books"

    config.model.update(families.LLAMA | {"tied_embedding": True})
    config.model.context_length = 256
    config.model.num_layers = 6
    config.model.d_model = 256
    config.model.num_heads = 4
    config.model.d_ff = 684
    config.compute.dtype = "float32"  # CPUs have no fast bfloat16
    config.compute.loss_chunk = 0  # the vocabulary is small

    config.train.tokens = 8_000_000
    config.train.batch_tokens = 4096
    config.optimizer.peak_lr = 3e-3
    config.optimizer.warmup_tokens = 400_000

    config.eval.every_steps = 500
    config.eval.tokens = 65_536
    config.checkpoint.every_steps = 250
    config.log.tensorboard = False
    return config
