r"""The reward model as InstructGPT trained it (arXiv 2203.02155, section 3.5 and appendix C.2).

    scaling align reward --config=experiments/instructgpt/reward.py --config.start=RUN --config.data.train='c.jsonl.gz'

One epoch, a cosine to a tenth, no warm-up; pairs, or rankings with ``--config.align.completions=9``. The paper's batch
is 64 prompts and its learning rate 9e-6 for 6B; here a batch is 16 pairs of at most 256 tokens, and the learning rate
is for models of a few million parameters.

Machine: that of the model. Time, loss and accuracy of a model of 5.8M parameters: docs/results/instructgpt.
"""

from ml_collections import ConfigDict

from scaling.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.tokenizer = ""  # the start's, with control tokens for dialogues
    config.data.validation_fraction = 0.1
    config.compute.dtype = "float32"
    config.compute.loss_chunk = 0

    config.align.epochs = 1.0
    config.train.sequence_length = 256
    config.train.batch_tokens = 32 * 256
    config.optimizer.peak_lr = 1e-4
    config.optimizer.warmup_tokens = 0
    config.optimizer.weight_decay = 0.01

    config.eval.every_steps = 100
    config.checkpoint.every_steps = 100
    config.log.tensorboard = False
    return config
