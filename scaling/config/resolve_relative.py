"""Checks Transformer-XL's and XLNet's attention, segments and memories against the rest of the config. No JAX."""

from typing import Any

from scaling.config.refusal import must_be, must_be_multiple, refused
from scaling.config.schema import Config


def check_relative(config: Config) -> None:
    """Refuses what scores by content and distance cannot have, and segments that they cannot be read in.

    Raises:
        ValueError: see there.
    """
    model, xlnet = config.model, config.model.positions == "xlnet"
    if not (model.is_relative or model.segment_length or model.memory_length):
        return
    if model.memory_length and not model.segment_length:
        right = "must be 0 with config.model.segment_length=0, which reads a text as a whole"
        raise refused("model.memory_length", model.memory_length, right)
    wrong: tuple[tuple[str, Any, Any], ...] = (
        ("model.causal", model.causal, not xlnet and (model.causal or bool(model.segment_length))),
        ("model.segment_length", model.segment_length, 0 if xlnet else model.segment_length),
        ("model.experts.count", model.experts.count, 0 if model.segment_length else model.experts.count),
        ("model.encoder_layers", model.encoder_layers, 0),
        ("model.discriminator", model.discriminator, False),
        ("model.attention_pattern", model.attention_pattern, ("dense",) * len(model.attention_pattern)),
        ("model.parametrization", model.parametrization, "standard"),
        ("mesh.context", config.mesh.context, 1),
        ("mesh.stage", config.mesh.stage, 1),
    )
    if not model.is_relative:
        right = "must be 0 unless config.model.positions='transformer_xl', which has no positions in embeddings"
        raise refused("model.segment_length", model.segment_length, right)
    segments = f" and config.model.segment_length={model.segment_length}" if model.segment_length else ""
    must_be(wrong, f"with config.model.positions={model.positions!r}{segments}")
    must_be_multiple("model.d_model", model.d_model, 2, f"2, for config.model.positions={model.positions!r}")
    length, size = config.train.sequence_length, model.segment_length
    if size and length > size:
        must_be_multiple("train.sequence_length", length, size, "config.model.segment_length")
