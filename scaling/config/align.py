"""The knobs of what comes after pre-training: the sections ``chat``, ``align`` and ``lora`` of ``schema.Config``."""

import dataclasses

from scaling.config.knob import knob


@dataclasses.dataclass(frozen=True)
class Chat:
    template: str = knob("", "path", "chat template (jinja2) in the place of the tokenizer's own")
    system: str = knob("", "", "system message of dialogues that have none")


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
    completions: int = knob(2, "completions", "reward model: of a prompt at most; so many rows belong together")
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
