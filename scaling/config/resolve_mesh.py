"""Checks a mesh against the model and the batch, and derives the values of its knobs that are left open. No JAX."""

import math

from scaling.config.refusal import must_be_multiple, must_divide, nearest_divisors, nearest_multiples, refused
from scaling.config.schema import Config, Mesh, Train


def check_mesh(config: Config, device_count: int | None) -> None:
    """Raises a ValueError for a mesh that needs another number of devices, or does not divide model and batch."""
    model, train, mesh = config.model, config.train, config.mesh
    if device_count is not None and mesh.devices != device_count:
        raise ValueError(
            f"{_describe(mesh)} but there are {_devices(device_count)}; the product of the axes must be that"
        )
    must_divide("mesh.fsdp", mesh.fsdp, "model.d_model", model.d_model)
    parts = mesh.replicas * mesh.state_shards
    if mesh.shard_optimizer and model.d_model % parts:
        raise refused(
            "mesh.shard_optimizer",
            mesh.shard_optimizer,
            f"needs config.model.d_model={model.d_model} to be a multiple of the {parts} replicas and shards",
        )
    for name, value in (("num_heads", model.num_heads), ("d_ff", model.d_ff), ("experts.d_ff", model.d_expert)):
        must_divide("mesh.tensor", mesh.tensor, f"model.{name}", value)
    if model.kv_heads > 1:  # a single one lies on every device
        must_divide("mesh.tensor", mesh.tensor, "model.num_kv_heads", model.kv_heads)
    shards = parts if mesh.shard_optimizer else mesh.state_shards
    must_be_multiple("model.embedding_width", model.embedding_width, shards, f"the {shards} shards of the state")
    if model.generates:
        both = math.lcm(shards, mesh.tensor * model.d_head)
        unit = f"{both}, for the {shards} shards of the state, and heads on config.mesh.tensor={mesh.tensor} devices"
        must_be_multiple("model.generator_width", model.generator_width, both, unit)
        if model.generator.d_ff % mesh.tensor:
            right = f"must divide the {model.generator.d_ff} features of the generator's MLP"
            raise refused("mesh.tensor", mesh.tensor, right)
    if model.padded_vocab % mesh.tensor:
        raise refused(
            "model.vocab_multiple",
            model.vocab_multiple,
            f"pads the vocabulary to {model.padded_vocab} rows, which config.mesh.tensor={mesh.tensor} does not "
            f"divide; must be a multiple of {mesh.tensor}",
        )
    # Between tensor-parallel regions, activations are sharded over sequence.
    must_be_multiple("train.sequence_length", train.sequence_length, mesh.tensor, "config.mesh.tensor")
    if mesh.expert > 1:
        _check_experts(config)
    if mesh.context > 1:
        _check_context(config)
    # Until the number of devices is known, data=-1 counts as 1, its smallest value.
    shards = mesh.shards
    product = "*".join(axis for axis in mesh.factors if axis not in ("context", "tensor"))
    unit = f"the {shards} shards of the batch (config.mesh {product})"
    smallest = "train.ramp_start_tokens" if train.ramp_tokens else "train.batch_tokens"
    tokens = train.ramp_start_tokens if train.ramp_tokens else train.batch_tokens
    if tokens // train.sequence_length % shards:
        near = nearest_multiples(tokens, shards * train.sequence_length)
        raise refused(
            smallest,
            tokens,
            f"is {tokens // train.sequence_length} sequences, which do not divide evenly over {unit}; {near} would",
        )
    must_be_multiple("train.microbatch_sequences", train.microbatch_sequences, shards, unit)
    must_be_multiple("eval.batch_sequences", config.eval.batch_sequences, shards, unit)


def _check_experts(config: Config) -> None:
    """What experts on devices of their own ask for."""
    model, mesh = config.model, config.mesh
    if not model.experts.count:
        raise refused("mesh.expert", mesh.expert, "must be 1 with config.model.experts.count=0; use config.mesh.fsdp")
    must_divide("mesh.expert", mesh.expert, "model.experts.count", model.experts.count)
    if not model.experts.capacity:
        raise refused(
            "model.experts.capacity",
            model.experts.capacity,
            f"must be more than 0 with config.mesh.expert={mesh.expert}: what devices exchange has a fixed size",
        )
    if model.d_model % (mesh.fsdp * mesh.expert):
        raise refused(
            "mesh.expert",
            mesh.expert,
            f"times config.mesh.fsdp={mesh.fsdp} must divide config.model.d_model={model.d_model}: both shard the "
            "other parameters",
        )


def _check_context(config: Config) -> None:
    """Refuses what ring attention cannot do."""
    model, mesh = config.model, config.mesh
    if "strided" in model.attention_pattern:
        raise refused("mesh.context", mesh.context, "must be 1 with 'strided' in config.model.attention_pattern")
    if model.positions in ("alibi", "relative"):
        raise refused("mesh.context", mesh.context, f"must be 1 with config.model.positions={model.positions!r}")
    if mesh.stage > 1:
        raise refused(
            "mesh.context",
            mesh.context,
            f"must be 1 with config.mesh.stage={mesh.stage}: a pipeline has no ring attention",
        )
    if model.d_model % mesh.state_shards:
        others = f"config.mesh.fsdp={mesh.fsdp}"
        if mesh.expert > 1:
            others += f" and config.mesh.expert={mesh.expert}"
        raise refused(
            "mesh.context",
            mesh.context,
            f"times {others} must divide config.model.d_model={model.d_model}: both shard the parameters",
        )
    parts = mesh.context * math.lcm(2, mesh.tensor)
    unit = f"{parts}: each of the config.mesh.context={mesh.context} devices holds two chunks of a sequence"
    if mesh.tensor > 2:
        unit += f", each sharded over config.mesh.tensor={mesh.tensor}"
    must_be_multiple("train.sequence_length", config.train.sequence_length, parts, unit)
    for name in ("dropout_embedding", "dropout_attention", "dropout_residual"):
        if getattr(model, name):
            raise refused(f"model.{name}", getattr(model, name), f"must be 0 with config.mesh.context={mesh.context}")


def check_stages(mesh: Mesh) -> None:
    """Refuses stages that would be divided unevenly among slices.

    Raises:
        ValueError: neither the number of stages nor that of slices divides the other.
    """
    if mesh.stage % mesh.slices and mesh.slices % mesh.stage:
        raise refused(
            "mesh.stage",
            mesh.stage,
            f"and config.mesh.slices={mesh.slices}: one must divide the other, so that each stage has whole slices, or "
            "each slice whole stages",
        )


def check_pipeline(config: Config) -> None:
    """Raises a ValueError for stages that do not divide the layers, and for what cannot run in a pipeline."""
    model, train, mesh = config.model, config.train, config.mesh
    parts, period = train.pipeline_microbatches, len(model.attention_pattern)
    if mesh.stage == 1:
        if parts:
            raise refused("train.pipeline_microbatches", parts, "needs config.mesh.stage > 1; must be 0 without stages")
        return
    if model.experts.count:
        raise refused("mesh.stage", mesh.stage, "must be 1 with config.model.experts.count > 0; use config.mesh.expert")
    if model.num_layers % (mesh.stage * period):
        groups = model.num_layers // period
        entries = "" if period == 1 else f"{groups} repetitions of config.model.attention_pattern in "
        raise refused(
            "mesh.stage",
            mesh.stage,
            f"must divide the {entries}config.model.num_layers={model.num_layers}, as "
            f"{nearest_divisors(groups, mesh.stage)} would",
        )
    if model.positions == "relative":
        raise refused("model.positions", "relative", "does not run through a pipeline; use config.mesh.stage=1")
    for name, value in (("eval.tasks", config.eval.tasks), ("sample.prompts", config.sample.prompts)):
        if value:
            raise refused(
                name,
                value,
                f"does not run through a pipeline; must be empty with config.mesh.stage={mesh.stage}: use scaling "
                f"{'evaluate' if name == 'eval.tasks' else 'generate'} on the run directory",
            )
    if not parts:  # the devices are not known yet
        return
    must_be_multiple("train.pipeline_microbatches", parts, mesh.stage, "config.mesh.stage")
    shards = mesh.stage_shards
    unit = f"the {parts} parts (config.train.pipeline_microbatches) for each of the {shards} shards of a stage"
    must_be_multiple("train.microbatch_sequences", train.microbatch_sequences, parts * shards, unit)
    must_be_multiple("eval.batch_sequences", config.eval.batch_sequences, parts * shards, unit)


def pipeline_microbatches(mesh: Mesh, train: Train) -> int:
    """Number of parts: four a stage, so that the pipeline idles less than a fifth of the time, or the most possible."""
    rows = train.microbatch_sequences // mesh.stage_shards
    return max((n for n in range(mesh.stage, 4 * mesh.stage + 1, mesh.stage) if rows % n == 0), default=mesh.stage)


def data_axis(mesh: Mesh, device_count: int) -> int:
    """Number of replicas that use all devices; a ValueError if the other axes do not divide the number of devices."""
    if device_count % mesh.devices:
        product = "*".join(axis for axis in mesh.factors if axis != "data")
        raise ValueError(f"{_describe(mesh)} but there are {_devices(device_count)}; {product} must divide that")
    return device_count // mesh.devices


def _describe(mesh: Mesh) -> str:
    axes = " * ".join(f"{axis}={size}" for axis, size in mesh.factors.items() if size > 0)
    return f"config.mesh: {axes} asks for {_devices(mesh.devices)}"


def _devices(count: int) -> str:
    return f"{count} device{'' if count == 1 else 's'}"
