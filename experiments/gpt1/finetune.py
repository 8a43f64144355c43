r"""GPT-1's supervised fine-tuning (Radford et al. 2018, section 4.1), for a run of any size.

    scaling align finetune --config=experiments/gpt1/finetune.py --task=sst2 --config.start=RUN \
        --config.data.train=FOLDER

lr 6.25e-5, a batch of 32 examples, 3 epochs, linear decay with a warm-up of 0.2 % of the training, dropout 0.1 also
before the head, and half of the language model's loss. Some tasks have several rows an example: ``gpt1/finetune:2``
for both orders of two texts or for two choices, ``gpt1/finetune:4`` for four choices.

Machine: that of the model. A model of 1.3M parameters takes 2 CPU cores four minutes for SST-2.
Time and loss at the paper's size: not measured here.
"""

from ml_collections import ConfigDict

from scaling.config import default_config


def get_config(rows: str = "1") -> ConfigDict:
    config = default_config()
    config.data.tokenizer = ""  # the start's, with control tokens around texts
    config.compute.loss_chunk = 0
    config.model.dropout_embedding = 0.1
    config.model.dropout_attention = 0.1
    config.model.dropout_residual = 0.1

    config.align.epochs = 3.0
    config.align.lm_weight = 0.5
    config.align.dropout = 0.1
    config.align.warmup = 0.002
    config.train.sequence_length = 128
    config.train.batch_tokens = 32 * int(rows) * config.train.sequence_length
    config.optimizer.peak_lr = 6.25e-5
    config.optimizer.beta2 = 0.999
    config.optimizer.weight_decay = 0.01
    config.optimizer.schedule = "linear"
    config.optimizer.final_fraction = 0.0
    config.optimizer.warmup_tokens = 0

    config.eval.every_steps = 0
    config.checkpoint.every_steps = 500
    config.log.tensorboard = False
    return config
