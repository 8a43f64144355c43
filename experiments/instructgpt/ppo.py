r"""PPO as InstructGPT used it (arXiv 2203.02155, section 3.5 and appendix C.4), for models of a few million parameters.

    scaling align ppo --config=experiments/instructgpt/ppo.py --config.start=SFT --config.rl.reward=REWARD \
        --config.data.train='prompts.jsonl.gz'

REWARD is a run of ``align reward``, FILE.py:FUNCTION, or a function that ships. PPO-ptx adds pre-training text:
``--config.rl.pretraining='text/*.jsonl.gz'``. The paper's coefficients: 0.02 of the divergence, clipping at 0.2, no
discount, one pass, an EMA of 0.992, and 27.8 of the pre-training loss over 8 rows an answer, for batches of 512 answers
in minibatches of 64. Here an iteration has 32 answers in two minibatches, and one row of text an answer.

Machine: that of the model. Time, rewards and losses of a model of 5.8M parameters on 2 CPU cores:
docs/results/instructgpt.
"""

from ml_collections import ConfigDict

from scaling.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.tokenizer = ""
    config.data.validation_fraction = 0.1
    config.data.bad_records = "skip"
    config.compute.dtype = "float32"
    config.compute.loss_chunk = 0

    config.align.epochs = 1.0
    config.train.sequence_length = 64
    config.train.batch_tokens = 32 * 64
    config.rl.response_tokens = 24
    config.rl.minibatches = 2
    config.optimizer.peak_lr = 1e-4
    config.optimizer.warmup_tokens = 10 * 32 * 64  # ten iterations
    config.optimizer.schedule = "constant"
    config.optimizer.weight_decay = 0.0

    config.eval.every_steps = 20
    config.eval.tokens = 128 * 64
    config.checkpoint.every_steps = 20
    config.log.every_steps = 1
    config.log.tensorboard = False
    return config
