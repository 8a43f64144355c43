"""Checks the model against itself and the rest of the config. No JAX."""

from scaling.config.refusal import must_be, must_be_multiple, must_divide, nearest_multiples, refused
from scaling.config.resolve_discriminator import check_discriminator
from scaling.config.resolve_relative import check_relative
from scaling.config.schema import Config, Model


def check_model(config: Config) -> None:
    """Refuses sizes and switches that exclude each other, or that an objective or a mesh does not go with.

    Raises:
        ValueError: see there.
    """
    model, train = config.model, config.train
    if train.sequence_length > model.context_length:
        raise refused(
            "train.sequence_length",
            train.sequence_length,
            f"is longer than the {model.context_length} positions of config.model.context_length; must be at most that",
        )
    _check_family(model)
    check_relative(config)
    if model.encoder_layers:
        _check_two_stacks(config)
    if model.prefix_lm:
        _check_prefix(config)
    if not model.causal:
        _check_encoder(config)
    else:
        for name in ("head_transform", "pooler", "pair_head", "layer_groups", "discriminator", "generator_layers"):
            if value := getattr(model, name):
                raise refused(f"model.{name}", value, f"must be {type(value)()} with config.model.causal=True")
    if model.pair_head and not model.pooler:
        raise refused("model.pair_head", True, "needs config.model.pooler=True, whose state it reads")
    if config.data.pack and config.data.objective != "pairs":
        raise refused("data.pack", True, f"must be False with config.data.objective={config.data.objective!r}")
    pairs = config.data.objective in ("mlm_nsp", "mlm_sop")
    if pairs and not model.pair_head:
        raise refused("model.pair_head", False, f"must be True with config.data.objective={config.data.objective!r}")
    period = len(model.attention_pattern)
    if model.num_layers % period:
        near = nearest_multiples(model.num_layers, period)
        raise refused(
            "model.num_layers",
            model.num_layers,
            f"must be a multiple of the {period} entries of config.model.attention_pattern, as {near} would be",
        )


def _check_two_stacks(config: Config) -> None:
    """What a model with an encoder beside its decoder cannot have."""
    must_be(
        (
            ("model.causal", config.model.causal, True),
            ("model.parallel", config.model.parallel, "no"),
            ("model.embedding_width", config.model.d_embedding, config.model.d_model),
            ("model.experts.count", config.model.experts.count, 0),
            ("model.outputs", config.model.outputs, 0),
            ("model.attention_pattern", config.model.attention_pattern, ("dense",)),
            ("model.document_mask", config.model.document_mask, False),
            ("mesh.context", config.mesh.context, 1),
            ("mesh.stage", config.mesh.stage, 1),
            ("lora.rank", config.lora.rank, 0),
            ("sample.prompts", config.sample.prompts, ()),
        ),
        "with config.model.encoder_layers > 0",
    )


def _check_prefix(config: Config) -> None:
    """What a decoder whose prompt sees itself on both sides cannot have."""
    model = config.model
    if model.positions not in (right := ("learned", "sinusoidal", "rotary", "none")):
        among = ", ".join(map(repr, right))
        raise refused("model.positions", model.positions, f"must be one of {among} with config.model.prefix_lm=True")
    must_be(
        (
            ("model.causal", model.causal, True),
            ("model.encoder_layers", model.encoder_layers, 0),
            ("model.attention_pattern", model.attention_pattern, ("dense",) * len(model.attention_pattern)),
            ("model.document_mask", model.document_mask, False),
            ("mesh.context", config.mesh.context, 1),
            ("mesh.stage", config.mesh.stage, 1),
        ),
        "with config.model.prefix_lm=True",
    )


def _check_encoder(config: Config) -> None:
    """What a model that sees both sides cannot have."""
    groups = config.model.layer_groups
    if groups:
        must_divide("model.layer_groups", groups, "model.num_layers", config.model.num_layers)
        if len(config.model.attention_pattern) > 1 or config.mesh.stage > 1:
            right = "must be 0 with several kinds of layers, or with stages of a pipeline"
            raise refused("model.layer_groups", groups, right)
    must_be(
        (
            ("mesh.context", config.mesh.context, 1),
            ("model.experts.count", config.model.experts.count, 0),
            ("eval.tasks", config.eval.tasks, ""),
            ("sample.prompts", config.sample.prompts, ()),
        ),
        "with config.model.causal=False",
    )
    check_discriminator(config)
    if config.model.distances and config.mesh.stage > 1:
        raise refused("mesh.stage", config.mesh.stage, "must be 1 with config.model.positions='disentangled'")
    narrow = config.data.objective != "next_token" and config.model.d_embedding != config.model.d_model
    if narrow and not config.model.head_transform and not config.model.discriminator:
        raise refused("model.head_transform", False, "must be True with config.model.embedding_width")
    if "strided" in config.model.attention_pattern:
        right = "must be of 'dense' and 'banded' with config.model.causal=False"
        raise refused("model.attention_pattern", config.model.attention_pattern, right)


def _check_family(model: Model) -> None:
    """Switches that exclude each other, or ask for other sizes."""
    must_divide("model.num_kv_heads", model.kv_heads, "model.num_heads", model.num_heads)
    if model.parallel != "no" and model.norm != "pre":
        raise refused("model.parallel", model.parallel, "must be 'no' with config.model.norm='post'")
    if model.positions == "sinusoidal":
        must_be_multiple("model.d_model", model.d_model, 2, "2, for config.model.positions='sinusoidal'")
    if model.positions == "rotary":
        _check_rotary(model)
    if model.relative_buckets < 2 or model.relative_distance <= model.relative_buckets // 2:
        right = f"must be at least 2, and half of it less than config.model.relative_distance={model.relative_distance}"
        raise refused("model.relative_buckets", model.relative_buckets, right)
    if model.positions == "disentangled":
        _check_disentangled(model)
    if model.experts.count:
        _check_experts(model)
    if model.parametrization != "standard":
        for name, value in (("attention_scale", model.attention_scale), ("embedding_width", model.embedding_width)):
            if value:
                raise refused(f"model.{name}", value, f"must be 0 with parametrization={model.parametrization!r}")


def _check_rotary(model: Model) -> None:
    rotary = model.rotary
    width = rotary.dim or model.d_head
    if width % 2 or width > model.d_head:
        name, value = ("rotary.dim", rotary.dim) if rotary.dim else ("d_head", model.d_head)
        raise refused(f"model.{name}", value, f"must be even, and at most config.model.d_head={model.d_head}")
    if rotary.scaling in ("llama3", "yarn") and not rotary.original_length:
        raise refused(
            "model.rotary.original_length",
            rotary.original_length,
            f"must be the longest text trained on, with config.model.rotary.scaling={rotary.scaling!r}",
        )
    low, high = rotary.bounds
    if rotary.scaling in ("llama3", "yarn") and low >= high:
        raise refused("model.rotary.low", low, f"must be less than config.model.rotary.high={high}")
    if rotary.theta <= 1:
        raise refused("model.rotary.theta", rotary.theta, "must be more than 1")


def _check_disentangled(model: Model) -> None:
    by, distance = model.disentangled, model.disentangled.distance or model.context_length
    must_be(
        (
            ("model.causal", model.causal, False),
            ("model.num_kv_heads", model.kv_heads, model.num_heads),
            ("model.attention_pattern", model.attention_pattern, ("dense",)),
            ("model.parametrization", model.parametrization, "standard"),
        ),
        "with config.model.positions='disentangled'",
    )
    if not model.positional_scores:
        right = "must be True where config.model.disentangled.position_to_content is not"
        raise refused("model.disentangled.content_to_position", False, right)
    if by.buckets and not 2 <= by.buckets < 2 * (distance - 1):
        right = f"must be 0, or at least 2 and less than 2 (N - 1), where N = {distance} is the largest distance"
        raise refused("model.disentangled.buckets", by.buckets, right)


def _check_experts(model: Model) -> None:
    experts = model.experts
    if experts.per_token > experts.count:
        raise refused(
            "model.experts.per_token",
            experts.per_token,
            f"must be at most config.model.experts.count={experts.count}",
        )
    must_divide("model.experts.every", experts.every, "model.num_layers", model.num_layers)
