r"""PPO-ptx at the size of InstructGPT (arXiv 2203.02155, appendix C.4), to see what an iteration needs.

    scaling plan --config=experiments/instructgpt/175b_ppo.py --topology=v5p:8x8x8
    scaling align ppo --config=experiments/instructgpt/175b_ppo.py --config.start=SFT --config.rl.reward=REWARD_RUN \
        --config.data.train='gs://bucket/prompts.jsonl.gz' --config.rl.pretraining='gs://bucket/corpus/*.jsonl.gz'

A policy and a reference of 175B, a value function and a reward model of 6.7B; prompts and answers of 1,024 tokens at
most; 512 answers an iteration in minibatches of 64, with 8 rows of pre-training text an answer. For a plan, the reward
is the file of an experiment, because only its size counts.

Machine: 512 TPU v5p chips. Time and memory as predicted: docs/planning.md. Its loss and rewards are not measured here.
"""

from ml_collections import ConfigDict

from scaling.catalog import recipes


def get_config() -> ConfigDict:
    config = recipes.gpt3("175b", fsdp=64, tensor=8, remat="full")
    config.data.tokenizer = "gpt2"
    config.train.sequence_length = 2048
    config.train.batch_tokens = 512 * 2048
    config.train.microbatch_sequences = 64
    config.train.ramp_tokens = 0
    config.train.ramp_start_tokens = config.train.batch_tokens
    config.align.epochs = 8.0  # 256k answers to 31k prompts

    config.rl.reward = "experiments/gpt3/6700m.py"
    config.rl.response_tokens = 1024
    config.rl.minibatches = 8
    config.rl.pretraining = "text"
    config.rl.pretraining_rows = 8
    config.rl.value_rate = 9e-6
    config.optimizer.peak_lr = 9e-6  # not published
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_tokens = 10 * 512 * 2048
    config.optimizer.weight_decay = 0.0
    return config
