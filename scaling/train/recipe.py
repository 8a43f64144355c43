"""What one kind of training is made of: pre-training here; the others in ``scaling/align``."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from scaling.config import schema as cfg
from scaling.data.tokenizer import Tokenizer
from scaling.objectives.next_token import next_token
from scaling.objectives.objective import Objective
from scaling.train.run import Data, Run
from scaling.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A kind of training.

    Attributes:
        verb: as the user types it, for messages.
        data: what it reads, of a resolved config and its tokenizer.
        objective: what it minimises.
        outputs: of its model (``config.model.outputs``); 0 = it predicts tokens.
        suffix: of ``control_tokenizer.SUFFIXES``: control tokens that its tokenizer needs; "" = none.
        counts_epochs: its length is ``config.align.epochs``, not ``config.train.tokens``.
        unit: of its loss.
        finish: what follows the last step, on every process; None = nothing.
        derived: what a validation reports beside the means of its metrics, made of these; None = nothing.
        files: text files that it adds to the run directory, by name.
    """

    verb: str
    data: Callable[[cfg.Config, Tokenizer], Data]
    objective: Callable[[cfg.Config], Objective]
    outputs: int = 0
    suffix: str = ""
    counts_epochs: bool = False
    unit: str = "nats/token"
    finish: Callable[[Run, TrainState], None] | None = None
    derived: Callable[[Mapping[str, Any]], dict[str, float]] | None = None
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)


PRETRAINING = Recipe("train", Data.of, next_token)
