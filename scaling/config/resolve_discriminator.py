"""Checks a discriminator and its generator (ELECTRA) against the rest of the config. No JAX."""

from scaling.config.refusal import must_be, must_be_multiple, refused
from scaling.config.schema import Config


def check_discriminator(config: Config) -> None:
    """Refuses what a discriminator cannot have, and its generator.

    Raises:
        ValueError: see there.
    """
    model = config.model
    if model.generator_layers and not model.discriminator:
        raise refused("model.generator_layers", model.generator_layers, "needs config.model.discriminator=True")
    if not model.discriminates:
        return
    must_be(
        (
            ("model.head_transform", model.head_transform, False),
            ("model.logit_bias", model.logit_bias, False),
            ("model.pair_head", model.pair_head, False),
            ("model.tied_embedding", model.tied_embedding, True),
        ),
        "with config.model.discriminator=True, which has no logits",
    )
    if model.generates:
        _check_generator(config)


def _check_generator(config: Config) -> None:
    model, width = config.model, config.model.generator_width
    must_be(
        (
            ("model.narrow_embedding", model.narrow_embedding, True),
            ("model.layer_groups", model.layer_groups, 0),
            ("model.scaled_embedding", model.scaled_embedding, False),
            ("model.num_kv_heads", model.kv_heads, model.num_heads),
            ("model.parametrization", model.parametrization, "standard"),
            ("mesh.stage", config.mesh.stage, 1),
            ("lora.rank", config.lora.rank, 0),
        ),
        "with config.model.generator_layers > 0",
    )
    if model.positions == "sinusoidal":
        raise refused("model.positions", "sinusoidal", "must be another kind with config.model.generator_layers > 0")
    if not 0 < width <= model.d_model:
        right = f"must be at least 1, and at most config.model.d_model={model.d_model}, the discriminator's width"
        raise refused("model.generator_width", width, right)
    must_be_multiple("model.generator_width", width, model.d_head, "config.model.d_head")
    if model.d_ff * width % model.d_model:
        right = f"must leave a whole number of the {model.d_ff} features of config.model.d_ff, in proportion to d_model"
        raise refused("model.generator_width", width, right)
    period = len(model.attention_pattern)
    unit = f"the {period} entries of config.model.attention_pattern"
    must_be_multiple("model.generator_layers", model.generator_layers, period, unit)
