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

from scaling.catalog import recipes


def get_config(rows: str = "1") -> ConfigDict:
    return recipes.finetuning(int(rows), peak_lr=2e-5, warmup=0.1, lm_weight=0.0)
