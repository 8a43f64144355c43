"""The objective of pre-training by its name."""

from scaling.config import schema as cfg
from scaling.config.refusal import refused
from scaling.objectives.masked import masked
from scaling.objectives.next_token import next_token
from scaling.objectives.objective import Objective

OBJECTIVES = {"next_token": next_token, "mlm": masked, "mlm_nsp": masked, "mlm_sop": masked}


def pretraining(config: cfg.Config) -> Objective:
    """What ``config.data.objective`` minimises.

    Raises:
        ValueError: as ``must_fit``.
    """
    must_fit(config)
    return OBJECTIVES[config.data.objective](config)


def must_fit(config: cfg.Config) -> None:
    """Refuses a model that sees what it is to predict, or not what it needs to see.

    Raises:
        ValueError: it does.
    """
    name = config.data.objective
    if config.model.causal != (name == "next_token"):
        right = f"must be {name == 'next_token'} with config.data.objective={name!r}"
        raise refused("model.causal", config.model.causal, right)
