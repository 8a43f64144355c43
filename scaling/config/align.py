"""The knobs of what comes after pre-training, as sections of ``schema.Config``."""

import dataclasses

from scaling.config.knob import knob


@dataclasses.dataclass(frozen=True)
class Chat:
    template: str = knob(
        "", "path", "chat template (jinja2) in the place of the tokenizer's own; empty = config.start's, or none"
    )
    system: str = knob("", "", "system message of dialogues that have none; empty = config.start's, or none")


MATRICES = ("query", "key", "value", "out", "up", "gate", "down")  # of blocks: attention's four, the MLP's three


@dataclasses.dataclass(frozen=True)
class Lora:
    rank: int = knob(
        0, "", "low-rank adapters of this rank are trained (LoRA), and config.start's weights stay; 0 = no adapters"
    )
    alpha: float = knob(16.0, "", "an adapter's product is multiplied by alpha / rank")
    matrices: tuple[str, ...] = knob(
        MATRICES, "", "matrices of the blocks that get adapters; those that the model lacks are passed over"
    )
    first_new_token: int = knob(
        -1,
        "id",
        "rows of the token tables from this id on are trained whole, beside the adapters; -1 = those of control tokens "
        "that config.start's tokenizer lacks; the size of the vocabulary = none",
    )


@dataclasses.dataclass(frozen=True)
class Align:
    epochs: float = knob(1.0, "passes", "training passes over the data so many times; 0 = config.train.tokens")
    completions: int = knob(
        2, "completions", "reward model, dpo: of a prompt at most; the reward model keeps so many rows together"
    )
    demonstrations: str = knob(
        "", "path", "reward model: dialogues whose mean reward becomes 0; empty = the best completions held out"
    )
    task: str = knob("", "", "finetune: a task that ships (sst2, rte, stsb, ...), or the path of a file of your own")
    lm_weight: float = knob(0.0, "", "finetune: coefficient of the language-model loss beside that of the task")
    dropout: float = knob(0.0, "probability", "finetune: dropout of the state that the head reads")
    layers: int = knob(
        -1,
        "blocks",
        "first blocks that come from config.start, with the embeddings; -1 = all; -2 = nothing, so random weights",
    )
    warmup: float = knob(
        0.0, "fraction", "of a training of config.align.epochs; 0 = config.optimizer.warmup_tokens decides"
    )
    loss_on: str = knob("assistant", "", "supervised: tokens that count, 'assistant' (with ends of turn) or 'all'")


@dataclasses.dataclass(frozen=True)
class Reinforcement:
    reward: str = knob(
        "",
        "",
        "what scores answers: a run of align reward, FILE.py:FUNCTION, or exact_match or constraints, which ship",
    )
    gold: str = knob(
        "", "", "another reward that is logged at each validation and trains nothing; named as rl.reward is"
    )
    response_tokens: int = knob(64, "tokens", "of an answer at most; prompts have the rest of train.sequence_length")
    samples: int = knob(1, "answers", "of a prompt in an iteration; grpo needs at least 2")
    temperature: float = knob(1.0, "", "of the softmax when answers are drawn, and in all log-probabilities")
    minibatches: int = knob(1, "", "updates that the answers of an iteration are cut into")
    passes: int = knob(1, "", "over the answers of an iteration, each in another order")
    clip: float = knob(0.2, "", "how far the ratio of probabilities may leave 1 before its gradient is cut off")
    value_clip: float = knob(0.2, "", "ppo: the same for the value function, around what it said before")
    value_rate: float = knob(0.0, "", "ppo: peak learning rate of the value function; 0 = that of the policy")
    gamma: float = knob(1.0, "", "ppo: discount of rewards by token")
    gae_lambda: float = knob(0.95, "", "ppo: decay of the generalized advantage estimate")
    whiten: str = knob("sample", "", "ppo: variance by which advantages are whitened: sample, population, or none")
    kl: float = knob(0.02, "", "coefficient of the divergence from the model of config.start")
    kl_target: float = knob(0.0, "nats/answer", "divergence to which the coefficient adapts; 0 = it is fixed")
    kl_horizon: float = knob(10_000.0, "answers", "over which the adaptive coefficient follows")
    kl_in: str = knob("reward", "", "where the divergence is: in the 'reward', or in the 'loss'")
    kl_estimator: str = knob("k3", "", "of the divergence in the loss: k1, k2 or k3; in the reward it is k1")
    by_spread: bool = knob(True, "", "grpo: divide advantages by the spread of the group's scores")
    mean: str = knob("token", "", "how tokens are averaged in the policy's loss: token, sequence, constant or prompt")
    missing_end: str = knob("keep", "", "score of an answer without an end: keep it, replace it, or add a number to it")
    missing_end_value: float = knob(-1.0, "", "the number of rl.missing_end")
    ema: float = knob(0.992, "", "decay by iteration of the mean of the policy's weights that is kept beside; 0 = none")
    pretraining: str = knob("", "path", "text whose loss is added to the policy's (PPO-ptx); empty = none")
    pretraining_weight: float = knob(27.8, "", "of its mean loss of a token, beside the mean of the policy's loss")
    pretraining_rows: int = knob(1, "rows", "of such text for each answer, of train.sequence_length tokens")


@dataclasses.dataclass(frozen=True)
class Dpo:
    beta: float = knob(0.1, "", "what the log of policy / reference is multiplied by, which makes it a reward")
    loss: str = knob("sigmoid", "", "'sigmoid' (DPO) or 'ipo', of the sums of an answer's log-probabilities")
    nll: float = knob(0.0, "", "coefficient of the negative log-likelihood a token of the chosen answer")
    label_smoothing: float = knob(
        0.0, "probability", "of a wrong label: so much of the loss is that of the exchanged pair"
    )
    pairs: str = knob(
        "all", "", "of a ranking of more than two: 'all', or 'best_worst' for the best and the worst completion alone"
    )


@dataclasses.dataclass(frozen=True)
class Distill:
    teacher: str = knob("", "path", "run directory whose predictions are imitated; empty = config.start")
    layers: int = knob(
        0, "layers", "blocks of config.start with which the training begins, at equal distances; 0 = all"
    )
    temperature: float = knob(2.0, "", "divides the logits of both models, where they are compared")
    kl: float = knob(5.0, "", "coefficient of the divergence from the teacher, times temperature^2")
    lm: float = knob(2.0, "", "coefficient of the loss of config.data.objective")
    cosine: float = knob(1.0, "", "coefficient of 1 - cosine of the final states of both models")
