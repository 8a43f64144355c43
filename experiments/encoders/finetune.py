r"""BERT's fine-tuning for a task (arXiv 1810.04805, section 4 and appendix A.3), for an encoder of any size.

    scaling align finetune --config=experiments/encoders/finetune.py --task=rte --config.start=RUN \
        --config.data.train=FOLDER

lr 2e-5 (5e-5, 4e-5, 3e-5 and 2e-5 are tried in the paper), a batch of 32 examples, 3 epochs, linear decay with a
warm-up of a tenth, dropout 0.1. ``encoders/finetune:2`` for tasks of two rows an example: both orders of two texts, or
two choices.

Machine: that of the model.
Time and loss at the paper's size: not measured here.
"""

from ml_collections import ConfigDict

from scaling.config import default_config


def get_config(rows: str = "1") -> ConfigDict:
    config = default_config()
    config.data.tokenizer = ""  # the start's
    config.compute.loss_chunk = 0
    config.model.dropout_embedding = 0.1
    config.model.dropout_attention = 0.1
    config.model.dropout_residual = 0.1

    config.align.epochs = 3.0
    config.align.lm_weight = 0.0
    config.align.dropout = 0.1
    config.align.warmup = 0.1
    config.train.sequence_length = 128
    config.train.batch_tokens = 32 * int(rows) * config.train.sequence_length
    config.optimizer.peak_lr = 2e-5
    config.optimizer.beta2 = 0.999
    config.optimizer.weight_decay = 0.01
    config.optimizer.schedule = "linear"
    config.optimizer.final_fraction = 0.0
    config.optimizer.warmup_tokens = 0

    config.eval.every_steps = 0
    config.checkpoint.every_steps = 500
    config.log.tensorboard = False
    return config
