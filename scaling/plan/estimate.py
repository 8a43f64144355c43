"""Memory and time of a train step from shapes alone: no compiler, no JAX, milliseconds."""

import dataclasses

from scaling import chips, flops
from scaling import config as cfg

EFFICIENCY = 0.6  # of the peak, for products in bfloat16; large ones reach more, whole steps rarely do
ASSUMPTIONS = (
    "An estimate from shapes, not a measurement and not compiled: products at "
    f"{100 * EFFICIENCY:.0f} % of the peak, recomputation added, network at its data sheet and half hidden.",
)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes a device by part, seconds of a step, and seconds by kind of work."""

    memory: dict[str, int]
    seconds: float
    parts: dict[str, float]


def train_step(config: cfg.Config, chip: chips.Chip) -> Estimate:
    """Memory and time of one optimizer step.

    Args:
        config: resolved, mesh and vocabulary known.
        chip: what it runs on.
    """
    model, train, mesh = config.model, config.train, config.mesh
    params = 4 * _shard_parameters(model, mesh)
    memory = {
        "params": params,
        "optimizer": 2 * params,
        "temporary": _temporary(config, params),
    }
    devices = mesh.slices * mesh.data * mesh.fsdp * mesh.tensor
    peak = EFFICIENCY * chip.flops / chip.devices
    tokens = train.batch_tokens / devices
    work = tokens * flops.training_per_token(model, train.sequence_length) / peak
    again = tokens * recomputed(model, train.sequence_length) / peak
    # FSDP: each microbatch gathers the weights for the forward and the backward pass and scatters their gradients.
    microbatches = train.batch_tokens // train.sequence_length // train.microbatch_sequences
    weights = 2 * params / 4 * mesh.fsdp
    share = (mesh.fsdp - 1) / mesh.fsdp
    network = (3 * weights * share * microbatches + 4 * params / 4 * (mesh.data > 1)) / (chip.link / chip.devices)
    exposed = network / 2
    parts = {"model": work, "recomputation": again, "network, not hidden": exposed}
    return Estimate(memory, sum(parts.values()), parts)


def recomputed(model: cfg.Model, length: int) -> float:
    """FLOPs a token that the backward pass computes again (``remat``)."""
    forward = flops.forward_per_token(model, length) - 2 * model.vocab_size * model.d_model
    if model.remat == "full":
        return forward
    return 0.0


def _shard_parameters(model: cfg.Model, mesh: cfg.Mesh) -> int:
    """Numbers that one device holds: matrices are cut over fsdp and tensor, biases over tensor where they can be."""
    d, heads, f = model.d_model, model.num_heads * model.d_head, model.d_ff
    matrices = model.num_layers * (4 * d * heads + 2 * d * f) + model.padded_vocab * d * (2 - model.tied_embedding)
    cut = model.num_layers * (3 * heads + f)
    whole = model.num_layers * 6 * d + 2 * d
    positions = model.context_length * d // mesh.fsdp
    return matrices // (mesh.fsdp * mesh.tensor) + positions + cut // mesh.tensor + whole


def _temporary(config: cfg.Config, params: int) -> int:
    """Activations and gradients at the fuller of two moments: in the loss, and in the backward pass of a layer."""
    model, train, mesh = config.model, config.train, config.mesh
    size = 2 if model.compute_dtype == "bfloat16" else 4
    shards = mesh.slices * mesh.data * mesh.fsdp
    tokens = train.microbatch_sequences * train.sequence_length // shards
    d, heads, f, t = model.d_model, model.num_heads * model.d_head, model.d_ff, mesh.tensor
    kept = {
        "full": d / t,
        "projections": d / t + (4 * heads + f) / t,
        "dots": d / t + (3 * heads + f) / t + 2 * d / t,
        "none": 6 * d / t + (8 * heads + 2 * f) / t,
    }[model.remat]
    saved = model.num_layers * tokens * kept * size
    period = len(model.attention_pattern)
    layer = (4 * d * heads + 2 * d * f) / t
    gathered = period * layer * size
    chunk = min(train.loss_chunk or train.sequence_length, train.sequence_length)
    logits = tokens / train.sequence_length * chunk * model.padded_vocab / t * 4
    table = model.padded_vocab * d / t
    loss = saved + 2 * logits + table * (size + 4) + 2 * tokens * d * size
    microbatches = train.batch_tokens // train.sequence_length // train.microbatch_sequences
    gradients = params * (2 if microbatches > 1 else 1)
    backward = saved + gathered + layer * size + tokens * (5 * heads + 3 * f) / t * size + 4 * tokens * d * size
    return int(max(loss, backward) + gradients)
