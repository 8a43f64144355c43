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

from scaling.catalog import recipes


def get_config(rows: str = "1") -> ConfigDict:
    return recipes.finetuning(int(rows), peak_lr=6.25e-5, warmup=0.002, lm_weight=0.5)
