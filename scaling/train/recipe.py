"""What one kind of training is made of: pre-training here; the others in ``scaling/align``."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from scaling.config import schema as cfg
from scaling.data.tokenizer import Tokenizer
from scaling.objectives.objective import Objective
from scaling.objectives.pretraining import pretraining
from scaling.train.metrics import Log
from scaling.train.reliability.recompute import TrainStep
from scaling.train.run import Data, Run
from scaling.train.state import Beside, TrainState
from scaling.train.validation import Validation


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A kind of training.

    Attributes:
        verb: as the user types it, for messages.
        data: what it reads, of a resolved config and its tokenizer.
        objective: what it minimises.
        outputs: of its model (``config.model.outputs``); 0 = it predicts tokens.
        suffix: of ``control_tokenizer.SUFFIXES``: control tokens that its tokenizer needs; "" = none.
        encoder_suffix: as ``suffix``, where the run begins with an encoder; None = it cannot.
        counts_epochs: its length is ``config.align.epochs``, not ``config.train.tokens``.
        unit: of its loss.
        finish: what follows the last step, on every process; None = nothing.
        derived: what a validation reports beside the means of its metrics, made of these; None = nothing.
        files: text files that it adds to the run directory, by name.
        frozen: parameters of other models, which the objective and the step take and do not change; None = none.
        beside: the part of the state that is its own; None = there is none.
        step: another step than ``make_train_step``'s, of the run and what is frozen; None = that. The state's
            parameters may be adapters of ``run.base``: ``model.lora.whole`` makes all of them.
        validation: another validation than the means of its metrics, of the same; None = that.
        figures: by which ``config.checkpoint.choose`` may choose; its validation gives them.
    """

    verb: str
    data: Callable[[cfg.Config, Tokenizer], Data]
    objective: Callable[[cfg.Config], Objective]
    outputs: int = 0
    suffix: str = ""
    encoder_suffix: str | None = None
    counts_epochs: bool = False
    unit: str = "nats/token"
    finish: Callable[[Run, TrainState], None] | None = None
    derived: Callable[[Mapping[str, Any]], dict[str, float]] | None = None
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    frozen: Callable[[Run], Any] | None = None
    beside: Callable[[Run], Beside] | None = None
    step: Callable[[Run, Any], TrainStep] | None = None
    validation: Callable[[Run, Any, Log], Validation] | None = None
    figures: tuple[str, ...] = ("loss",)


PRETRAINING = Recipe("train", Data.of, pretraining, encoder_suffix="")
