r"""GRPO (arXiv 2402.03300) on answers that can be checked: sums of two numbers of two digits.

    scaling align grpo --config=experiments/instructgpt/grpo.py --config.start=SFT \
        --config.data.train=sums/train.jsonl --config.data.validation=sums/held_out.jsonl

32 prompts an iteration with 8 answers each, drawn at temperature 1. The reward is 1 for the right number and else 0.

Machine: 2 CPU cores. All commands, the time, and the loss and rewards of three seeds: docs/results/sums.
"""

from ml_collections import ConfigDict

from scaling.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.tokenizer = ""
    config.compute.dtype = "float32"
    config.compute.loss_chunk = 0

    config.rl.reward = "exact_match"
    config.rl.samples = 8
    config.rl.response_tokens = 6
    config.rl.kl = 0.0
    config.rl.ema = 0.0
    config.align.epochs = 0.6
    config.train.sequence_length = 24
    config.train.batch_tokens = 256 * 24
    config.optimizer.peak_lr = 1e-4
    config.optimizer.warmup_tokens = 10 * 256 * 24
    config.optimizer.schedule = "constant"
    config.optimizer.weight_decay = 0.0

    config.eval.every_steps = 20
    config.eval.tokens = 512 * 24
    config.checkpoint.every_steps = 50
    config.log.every_steps = 1
    config.log.tensorboard = False
    return config
