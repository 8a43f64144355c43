"""The knobs of what comes after pre-training: the sections ``chat``, ``align`` and ``dpo`` of ``schema.Config``."""

import dataclasses

from scaling.config.knob import knob


@dataclasses.dataclass(frozen=True)
class Chat:
    template: str = knob("", "path", "chat template (jinja2) in the place of the tokenizer's own")
    system: str = knob("", "", "system message of dialogues that have none")


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
