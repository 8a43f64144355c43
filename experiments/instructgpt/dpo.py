r"""Direct preference optimisation (arXiv 2305.18290) of a supervised model, in the place of a reward model and PPO.

    scaling align dpo --config=experiments/instructgpt/dpo.py --config.start=RUN --config.data.train='pairs.jsonl.gz'

One pass over pairs with beta 0.1, 32 pairs a batch, a linear warm-up over the first tenth, and 0.2 of the chosen
answer's negative log-likelihood (Llama 3, arXiv 2407.21783, section 4.1.4). The learning rate is for models of a few
million parameters; the paper has 1e-6 for those of billions.

Measured from a supervised model of 5.8M parameters, with 985 pairs of kind and rude answers (the preference data of
"Build a Large Language Model (From Scratch)"), and 109 held out: loss 0.693 to 0.468, accuracy 0.84 (95 % interval 0.76
to 0.90), log-probability of the chosen answer -80.8 to -79.4, of the rejected one -89.0 to -94.5.

Machine: 2 CPU cores shared with about ten other processes, 31 steps. Time: 18 minutes, of which 13 in the steps.
"""

from ml_collections import ConfigDict

from scaling.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.tokenizer = ""  # the start's, with control tokens for dialogues
    config.data.validation_fraction = 0.1
    config.data.bad_records = "skip"  # HH-RLHF, for one, has empty responses
    config.compute.dtype = "float32"
    config.compute.loss_chunk = 0

    config.dpo.beta = 0.1
    config.dpo.nll = 0.2
    config.align.epochs = 1
    config.align.warmup = 0.1
    config.train.sequence_length = 128
    config.train.batch_tokens = 64 * 128
    config.train.microbatch_sequences = 16
    config.optimizer.peak_lr = 1e-4
    config.optimizer.weight_decay = 0.0

    config.eval.every_steps = 10
    config.eval.tokens = 65_536
    config.checkpoint.every_steps = 50
    config.log.tensorboard = False
    return config
