"""The knobs of what comes after pre-training: the sections ``chat`` and ``align`` of ``schema.Config``."""

import dataclasses

from scaling.config.knob import knob


@dataclasses.dataclass(frozen=True)
class Chat:
    template: str = knob("", "path", "chat template (jinja2) in the place of the tokenizer's own")
    system: str = knob("", "", "system message of dialogues that have none")


@dataclasses.dataclass(frozen=True)
class Align:
    epochs: float = knob(1.0, "passes", "training passes over the data so many times; 0 = config.train.tokens")
    completions: int = knob(2, "completions", "reward model: of a prompt at most; so many rows belong together")
    demonstrations: str = knob(
        "", "path", "reward model: dialogues whose mean reward becomes 0; empty = the best completions held out"
    )
    loss_on: str = knob("assistant", "", "supervised: tokens that count, 'assistant' (with ends of turn) or 'all'")
