"""Memory and time of a train step from shapes alone: no compiler, no JAX, milliseconds."""

import dataclasses

from scaling.catalog import chips, flops, sizes
from scaling.config import remat
from scaling.config import schema as cfg
from scaling.train.schedule import BatchSchedule

_NUMBER = {"float32": 4, "bfloat16": 2}  # bytes
EFFICIENCY = 0.9  # of the peak, for products in bfloat16
MEMORY_EFFICIENCY = 0.8  # of the bandwidth
# Numbers kept for each parameter, where it is not adamw's two. Others count as two, which is the most that is usual.
_MOMENTS = {"lion": 1, "muon": 1, "sgd": 0, "adafactor": 0}
# Numbers that norms, residuals and activations move for each token of a layer, forward and backward, as multiples of
# the widths of the residual stream and of the MLP: what the compiled steps of docs/planning.md move.
RESIDUAL_TRAFFIC, MLP_TRAFFIC = 30, 4
# Copies to the host and back move each byte so often in the chip's memory, beyond the work itself
# (docs/notes/compiling.md).
HOST_TRAFFIC = 2
ASSUMPTIONS = (
    f"An estimate from shapes, not a measurement and not compiled: products at {100 * EFFICIENCY:.0f} % of the peak, "
    f"attention's at half of that, other work by its bytes at {100 * MEMORY_EFFICIENCY:.0f} % of the bandwidth,",
    "gathers and scatters of parameters half hidden, the ring's hidden by attention, other traffic not hidden.",
    "Copies to the host and back at the published speed, hidden by the work of the same layer; without such a speed "
    "they are missing, as are scores that attention without a kernel keeps (encoders, prefix_lm).",
)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Memory and time of a step, for each device.

    Attributes:
        memory: part -> bytes.
        seconds: of a step.
        parts: kind of work -> seconds.
        host: bytes in the memory of the host.
        way: seconds for these bytes to the host, or back; 0 where the speed is not known.
        forward: seconds of the forward pass.
    """

    memory: dict[str, int]
    seconds: float
    parts: dict[str, float]
    host: int
    way: float
    forward: float


def train_step(config: cfg.Config, chip: chips.Chip) -> Estimate:
    """Memory and time of one optimizer step.

    Args:
        config: resolved, mesh and vocabulary known.
        chip: what it runs on.
    """
    model, compute, train, mesh = config.model, config.compute, config.train, config.mesh
    params = 4 * _shard_parameters(model, mesh)
    temporary, host = _temporary(config, chip, params)
    memory = {
        "params": params,
        "optimizer": _state_bytes(config.optimizer) * _shard_parameters(model, _moments_mesh(mesh)),
        "temporary": temporary,
    }
    state_shards = mesh.state_shards
    devices = mesh.devices
    peak = EFFICIENCY * chip.flops / chip.devices
    tokens = train.batch_tokens / devices
    length = train.sequence_length
    forward = flops.of_pretraining(config) / 3
    narrow = dataclasses.replace(model, attention_pattern=("banded",), band_width=1)
    source = config.data.source_length
    attention = flops.attention_per_token(model, length, source) - flops.attention_per_token(narrow, length, source)
    in_layers = forward - 2 * model.vocab_size * model.d_model * config.predicted
    again = _again(config, chip)
    twice = mesh.stage > 1 and compute.remat not in remat.NOTHING_TWICE  # a pipeline recomputes each tick, too
    products = _products(config, in_layers - attention)
    recomputed = sum(again[kind] * products.get(kind, attention) for kind in again) + twice * in_layers
    ticks = _ticks(config)
    # Attention's products run at half the speed of others, wherever they are counted.
    slow = attention * (3 + again[remat.ATTENTION])
    moved = (_depth(config) * RESIDUAL_TRAFFIC * model.d_model + MLP_TRAFFIC * _hidden(model)) * 2
    bandwidth = MEMORY_EFFICIENCY * chip.hbm_bandwidth / chip.devices
    elementwise = tokens * moved / bandwidth
    # FSDP: each microbatch gathers the weights for the forward and the backward pass and scatters their gradients.
    microbatches = BatchSchedule.from_config(train).max_microbatches
    weights = 2 * params / 4
    link = chip.link / chip.devices
    # Experts are gathered over all axes of the state but their own.
    routed = _expert_parameters(model) / (state_shards * mesh.tensor) * 2
    gathered = (weights - routed) * (state_shards - 1) + routed * (state_shards // mesh.expert - 1)
    gathers = (3 + twice) * gathered * microbatches * ticks / link
    reduction = 2 * params * (mesh.replicas - 1) / mesh.replicas / link
    apart = mesh.slices // mesh.stage  # replicas in slices of their own
    network = chip.between / chip.devices if mesh.slices > 1 and chip.between else link
    if apart > 1:  # each microbatch sums its gradients over slices, in two bytes each
        reduction += 2 * params / 2 * (apart - 1) / apart * microbatches / network
    # Tensor parallelism: around attention and MLP the residual stream is gathered and scattered, in both passes.
    crossing = 8 * _depth(config) * model.d_model * 2 * (mesh.tensor - 1)
    activations = tokens * crossing / link
    # Around experts, their slots cross the devices of ``expert`` twice in each pass.
    apart_experts = (mesh.expert - 1) / mesh.expert
    activations += tokens * 4 * model.expert_layers * _slots(model) * model.d_model * 2 * apart_experts / link
    # Between stages, a part in each of two buffers, in both passes.
    between = (mesh.stage > 1) * 4 * tokens * mesh.stage * ticks / _parts(config) * model.d_model * 2 / network
    # Context parallelism: keys and values go round in both passes, their gradients in the second; what attention's
    # products take longer than hides it. Bands are met by neighbours only.
    dense = model.num_layers * model.attention_pattern.count("dense") / len(model.attention_pattern)
    passes = 2 + again[remat.ATTENTION]
    rounds = dense * model.kv_heads * model.d_head * (passes * 2 * 2 + 2 * 4) * (mesh.context - 1)
    exposed_ring = max(0.0, tokens * rounds / link - 2 * tokens * slow / peak)
    ahead = tokens * (forward + attention) / peak + elementwise / 3 + gathers / 6
    sent = {kind: size * microbatches for kind, size in host.items()}
    way, exposed = _way(config, chip, sent, ahead, _times(products, attention, in_layers))
    parts = {
        "matrix products": tokens * (3 * forward + slow) / peak,
        "recomputation": tokens * recomputed / peak,
        "norms and elementwise": elementwise,
        "exposed collectives": gathers / 2 + reduction + activations + between + exposed_ring,
    }
    if host:
        parts["to the host and back"] = exposed + HOST_TRAFFIC * sum(sent.values()) / bandwidth
    if mesh.stage > 1:
        layers = tokens * (3 * in_layers + slow + recomputed) / peak + elementwise
        parts["pipeline filling and emptying"] = layers * (mesh.stage - 1) / _parts(config)
    return Estimate(memory, sum(parts.values()), parts, sum(host.values()), way, ahead)


def _way(
    config: cfg.Config, chip: chips.Chip, sent: dict[str, int], ahead: float, times: dict[str, tuple[float, float]]
) -> tuple[float, float]:
    """Seconds of a step's copies to the host, as long as those back, and how many of both directions nothing hides.

    Copies follow each other. Those of a layer must be gone at its end, and begin to come back where its backward pass
    begins, in the order in which it reads them.

    Args:
        config: the config.
        chip: what it runs on.
        sent: kind of tensor -> bytes, in the order in which they are made.
        ahead: seconds of the forward pass.
        times: of ``_times``.
    """
    kept = remat.parse(config.compute.remat)
    if not chip.host or not sent or kept is None:
        return 0.0, 0.0
    seconds = {kind: size / (chip.host.rate / chip.devices) for kind, size in sent.items()}
    layers = ahead * min(kept.share(kind, config.model.num_layers) for kind in sent)  # those that send
    gone = come = late = 0.0
    for kind in sent:
        gone = max(gone, times[kind][0] * layers) + seconds[kind]
    for kind in sorted(sent, key=lambda kind: times[kind][1]):
        come += seconds[kind]
        late = max(late, come - times[kind][1] * layers)
    return sum(seconds.values()), max(0.0, gone - layers) + late


def _times(products: dict[str, float], attention: float, in_layers: float) -> dict[str, tuple[float, float]]:
    """Kind -> where a layer has made it in its forward pass, and where its backward pass reads it.

    Both are counted from the beginning of the pass, as shares of a forward pass. Of the three of ``qkv``, the first.

    Args:
        products: kind -> FLOPs a token of the products that make it.
        attention: FLOPs a token of attention's own products, which take twice the time of others.
        in_layers: FLOPs a token of all products.
    """
    qkv, out, up = products[remat.QKV], products[remat.SUM], products[remat.HIDDEN]
    mlp = in_layers - attention - qkv - out
    attended = qkv + 2 * attention
    found = {
        remat.QKV: (qkv / 3, 2 * (mlp + out)),
        remat.ATTENTION: (attended, 2 * mlp),
        remat.SUM: (attended + out, mlp),
        remat.HIDDEN: (attended + out + up, mlp - up),
    }
    return {
        kind: (made / (in_layers + attention), read / (in_layers + attention)) for kind, (made, read) in found.items()
    }


def _again(config: cfg.Config, chip: chips.Chip) -> dict[str, float]:
    """Kind of ``remat.KINDS`` -> share of the layers that compute it again in the backward pass."""
    policy = config.compute.remat
    if policy in remat.NOTHING_TWICE:
        return dict.fromkeys(remat.KINDS, 0.0)
    kept = remat.parse(policy) or remat.Kept((remat.QKV, remat.SUM, remat.HIDDEN))  # ``dots``: all but attention
    found = {kind: 1 - kept.share(kind, config.model.num_layers) for kind in remat.KINDS}
    if not chip.clock:  # only the kernel of TPUs keeps what its backward pass needs
        found[remat.ATTENTION] = 1.0
    return found


def _products(config: cfg.Config, forward: float) -> dict[str, float]:
    """Kind -> FLOPs a token of the products that make it, in all layers.

    A layer's last product is needed by the next layer alone, which keeps its input, so it is never computed again.

    Args:
        config: the config.
        forward: FLOPs a token of all products of the layers but attention's own.
    """
    model = config.model
    hidden = _hidden(model) / model.num_layers
    sizes = {
        remat.QKV: (model.num_heads + 2 * model.kv_heads) * model.d_head,
        remat.SUM: model.num_heads * model.d_head,
        remat.HIDDEN: (1 + model.gated) * hidden,
    }
    if model.parallel != "no":
        sizes[remat.SUM] = 0  # there is no sum between attention and MLP
    whole = (2 * model.num_heads + 2 * model.kv_heads) * model.d_head + (2 + model.gated) * hidden
    return {kind: forward * size / whole for kind, size in sizes.items()}


def _kept(config: cfg.Config, queries: int, keys: int, hidden: float) -> tuple[float, dict[str, float]]:
    """Numbers that a layer keeps of each token on the chip, and kind -> in the host's memory; means over the layers.

    Args:
        config: the config.
        queries: features of all heads, as they lie in memory.
        keys: the same of keys.
        hidden: features of the products that the MLP's activation reads.
    """
    d, f, policy = config.model.d_model, _hidden(config.model) / config.model.num_layers, config.compute.remat
    if policy in remat.NOTHING_TWICE:  # with copies in float32
        return 8 * d + 8 * ((queries + keys) // 2) + 5 * f + hidden, {}
    kept = remat.parse(policy)
    if kept is None:
        return 3 * d + queries + 2 * keys + hidden, {}
    sizes = {remat.QKV: queries + 2 * keys, remat.ATTENTION: queries, remat.SUM: d, remat.HIDDEN: hidden}
    if config.model.parallel != "no":
        sizes[remat.SUM] = 0
    found = {kind: kept.share(kind, config.model.num_layers) * size for kind, size in sizes.items()}
    away = {kind: found.pop(kind) for kind in kept.host}
    return d + sum(found.values()), away


def _depth(config: cfg.Config) -> float:
    """Layers that a token passes through; those of an encoder by its tokens, and attention over these as a third.

    Layers of a generator count by their width.
    """
    model = config.model
    if model.generates:
        return model.num_layers + model.generator_layers * model.generator_width / model.d_model
    if not model.encoder_layers:
        return model.num_layers
    length = config.train.sequence_length
    return model.num_layers * 4 / 3 + model.encoder_layers * (config.data.source_length or length) / length


def _moments_mesh(mesh: cfg.Mesh) -> cfg.Mesh:
    """The mesh as moments see it: with ``shard_optimizer``, replicas are further shards."""
    if not mesh.shard_optimizer:
        return mesh
    return dataclasses.replace(mesh, data=1, slices=1, fsdp=mesh.fsdp * mesh.replicas)


def _slots(model: cfg.Model) -> float:
    """Of experts, for each token of a sequence."""
    return model.experts.per_token * max(1.0, model.experts.capacity)


def _hidden(model: cfg.Model) -> float:
    """Hidden features of a token's MLPs and experts, in all layers."""
    routed = model.expert_layers
    return (model.num_layers - routed) * model.d_ff + routed * _slots(model) * model.d_expert


def _expert_parameters(model: cfg.Model) -> int:
    """In the experts of all layers."""
    each = model.d_model * model.d_expert * (3 if model.experts.gated else 2)
    return model.expert_layers * model.experts.count * each


def _parts(config: cfg.Config) -> int:
    """Number of parts of a microbatch that pass through the stages of a pipeline."""
    return config.train.pipeline_microbatches or 1


def _ticks(config: cfg.Config) -> int:
    """Number of ticks of a microbatch in the pipeline; each gathers the layers of its stage."""
    return _parts(config) + config.mesh.stage - 1


def _state_bytes(optimizer: cfg.Optimizer) -> int:
    """Bytes of the optimizer's state for each parameter."""
    return _MOMENTS.get(optimizer.name, 2) * _NUMBER[optimizer.state_dtype]


def _shard_parameters(model: cfg.Model, mesh: cfg.Mesh) -> int:
    """Parameters on one device: layers are cut over stage, matrices over all axes except data, biases over tensor."""
    counted = sizes.parameters(model)
    in_layers = counted.matrices + counted.idle
    matrices = in_layers // mesh.stage + counted.token_embedding + counted.unembedding
    heads = (model.num_heads + 2 * model.kv_heads) * model.d_head
    plain = model.num_layers - model.expert_layers
    cut = (
        model.num_layers * model.qkv_bias * heads + plain * model.mlp_bias * (1 + model.gated) * model.d_ff
    ) // mesh.stage
    whole = (counted.blocks - in_layers) // mesh.stage - cut + counted.final_norm + counted.ends
    shards = mesh.state_shards
    return matrices // (shards * mesh.tensor) + counted.positions // shards + cut // mesh.tensor + whole


def _temporary(config: cfg.Config, chip: chips.Chip, params: int) -> tuple[int, dict[str, int]]:
    """Activations and gradients at the fuller of two moments: in the loss, and in the backward pass of a layer.

    Beside them, kind of tensor -> bytes in the host's memory.

    The coefficients were fitted to compiled steps (docs/planning.md); a test holds them to 10 % of the whole.
    """
    model, compute, train, mesh = config.model, config.compute, config.train, config.mesh
    size = 2 if compute.dtype == "bfloat16" else 4
    length = train.sequence_length // mesh.context
    # Of one part in a stage; outside of the layers, rows lie over the stages.
    part = train.microbatch_sequences * length // (mesh.stage_shards * _parts(config))
    tokens = part * _parts(config) // mesh.stage
    d, f, t = model.d_model, _hidden(model) / model.num_layers, mesh.tensor
    lanes = 128 if chip.clock else 1  # TPUs pad the last dimension of arrays in memory
    d_head = -(-model.d_head // lanes) * lanes
    queries, keys, ups = model.num_heads * d_head, model.kv_heads * d_head, (1 + model.gated) * f
    heads = (queries + keys) // 2  # a half: of queries, keys, values and mixed values
    kept, away = _kept(config, queries, keys, ups)
    kept /= t
    if mesh.stage > 1 and compute.remat not in remat.NOTHING_TWICE:
        # What enters at each tick, and all that one tick keeps.
        saved = part * (_ticks(config) * d / t + model.num_layers // mesh.stage * kept) * size
    else:
        saved = _ticks(config) * part * _depth(config) // mesh.stage * kept * size
    experts = _expert_parameters(model) / (model.expert_layers * mesh.expert) if model.expert_layers else 0
    attention = 2 * d * (model.num_heads + model.kv_heads) * model.d_head
    layer = (attention + max((2 + model.gated) * d * model.d_ff, experts)) / t
    gathered = len(model.attention_pattern) * layer * size
    chunk = min(compute.loss_chunk or length, length)
    logits = tokens / length * chunk * model.padded_vocab / t * 4
    table = model.padded_vocab * d / t
    loss = 3 * logits + table * (size + 4) + 2 * tokens * d * size
    backward = gathered + layer * size + part * (5 * heads + 3 * f) / t * size + 4 * part * d * size
    microbatches = BatchSchedule.from_config(train).max_microbatches
    several = microbatches > 1 or mesh.stage > 1
    gradients = params * (4 if several else 1.5)  # float32, a sum of them, weights in the narrow type
    host = {kind: int(part * _depth(config) * numbers / t * size) for kind, numbers in away.items()}
    return int(saved + max(loss, backward) + gradients), host
