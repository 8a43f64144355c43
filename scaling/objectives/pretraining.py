"""The objective of pre-training by its name."""

from scaling.config import schema as cfg
from scaling.config.refusal import refused
from scaling.data import pairs
from scaling.objectives.masked import masked
from scaling.objectives.next_token import next_token
from scaling.objectives.objective import Objective
from scaling.objectives.permutation import permutation
from scaling.objectives.replaced import replaced
from scaling.objectives.translations import translations

OBJECTIVES = {
    "next_token": next_token,
    "mlm": masked,
    "mlm_nsp": masked,
    "mlm_sop": masked,
    "tlm": masked,
    "replaced_token": replaced,
    "span_corruption": next_token,
    "denoising": next_token,
    "prefix": next_token,
    "permutation": permutation,
    "pairs": next_token,
    "translations": translations,
}
WITH_SOURCE = ("span_corruption", "denoising")  # what needs an encoder; pairs and prefix are for decoders alone, too


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
    name, model = config.data.objective, config.model
    said = f"with config.data.objective={name!r}"
    causal = OBJECTIVES[name] is next_token
    if model.causal != causal:
        raise refused("model.causal", model.causal, f"must be {causal} {said}")
    for knob in ("discriminator", "generator_layers"):
        value = getattr(model, knob)
        if bool(value) != (name == "replaced_token"):
            raise refused(f"model.{knob}", value, f"must be {'set' if not value else type(value)()} {said}")
    if name == "prefix" and not model.encoder_layers and not model.prefix_lm:
        right = f"must be True {said} and config.model.encoder_layers=0"
        raise refused("model.prefix_lm", False, right)
    if model.prefix_lm and name not in ("prefix", "pairs"):
        raise refused("model.prefix_lm", True, f"must be False {said}; it goes with pairs and prefix")
    if name in WITH_SOURCE and not model.encoder_layers:
        raise refused("model.encoder_layers", 0, f"must be at least 1 {said}, whose source an encoder reads")
    if model.encoder_layers and name not in (*WITH_SOURCE, "prefix", "pairs"):
        raise refused("model.encoder_layers", model.encoder_layers, f"must be 0 {said}, which has no source")
    length = config.data.source_length or config.train.sequence_length
    if (model.encoder_layers or name == "translations") and length > model.context_length:
        right = f"must be at most config.model.context_length={model.context_length}"
        raise refused("data.source_length", length, right)
    if name in pairs.OBJECTIVES:
        for knob, value in (("data.mixture", config.data.mixture), ("data.control_field", config.data.control_field)):
            if value:
                raise refused(knob, value, f"must be {type(value)()!r} {said}")
    if name == "permutation":
        if model.positions != "xlnet":
            right = f"must be 'xlnet' {said}, whose query stream knows where a token stands and not which"
            raise refused("model.positions", model.positions, right)
        if model.layer_groups:
            raise refused("model.layer_groups", model.layer_groups, f"must be 0 {said}")
    if name == "tlm" and model.token_types < 2:
        raise refused("model.token_types", model.token_types, f"must be at least 2 {said}, to tell languages apart")
