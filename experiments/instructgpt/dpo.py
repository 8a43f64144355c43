r"""Direct preference optimisation (arXiv 2305.18290) of a supervised model, in the place of a reward model and PPO.

    scaling align dpo --config=experiments/instructgpt/dpo.py --config.start=RUN --config.data.train='pairs.jsonl.gz'

One pass over pairs with beta 0.1, 32 pairs a batch, a linear warm-up over the first tenth, and 0.2 of the chosen
answer's negative log-likelihood (Llama 3, arXiv 2407.21783, section 4.1.4). The learning rate is for models of a few
million parameters; the paper has 1e-6 for those of billions.

Machine: that of the model; time and loss are not measured here yet.
"""

from ml_collections import ConfigDict

from scaling.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.tokenizer = ""  # the start's, with control tokens for dialogues
    config.data.validation_fraction = 0.1
    config.data.bad_records = "skip"  # HH-RLHF has dialogues that differ before the last answer
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
