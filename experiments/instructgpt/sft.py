r"""Supervised fine-tuning as InstructGPT did it (arXiv 2203.02155, section 3.5 and appendix C.1).

    scaling align sft --config=experiments/instructgpt/sft.py --config.start=RUN --config.data.train='d.jsonl.gz'

16 epochs, residual dropout of 0.2, a cosine to a tenth without warm-up. The paper's batch is 32 dialogues; here
dialogues are packed, and a batch is 32 rows of 256 tokens. The learning rate is for models of a few million parameters;
the paper has 9.65e-6 for 1.3B and 6B.

The paper chose among its checkpoints by the reward model's score on the validation set. This file keeps the newest;
`--config.checkpoint.choose=reward --config.rl.reward=REWARD` chooses so, with a reward model that exists already, and
`--config.checkpoint.choose=loss` by the validation loss (docs/align.md).

Machine: that of the model. Time and loss of a model of 5.8M parameters: docs/results/instructgpt.
"""

from ml_collections import ConfigDict

from scaling.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.tokenizer = ""  # the start's, with control tokens for dialogues
    config.data.validation_fraction = 0.05
    config.compute.dtype = "float32"
    config.compute.loss_chunk = 0
    config.model.dropout_residual = 0.2

    config.align.epochs = 16
    config.train.sequence_length = 256
    config.train.batch_tokens = 32 * 256
    config.optimizer.peak_lr = 3e-4
    config.optimizer.warmup_tokens = 0
    config.optimizer.weight_decay = 0.0

    config.eval.every_steps = 50
    config.checkpoint.every_steps = 100
    config.log.tensorboard = False
    return config
