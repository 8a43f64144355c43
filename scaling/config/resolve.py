"""Turns the config as written into the config as run: fills in derived values and refuses impossible ones.

Nothing here needs JAX, so what a config alone can tell is refused before anything is loaded or compiled. The number of
devices, tokenizer, data, the optimizer's arguments and an older run are checked when they are known.
"""

import dataclasses
from collections.abc import Callable

from scaling.config import remat
from scaling.config.align import MATRICES
from scaling.config.refusal import must_be, must_be_multiple, nearest_divisors, refused
from scaling.config.resolve_mesh import check_mesh, check_pipeline, check_stages, data_axis, pipeline_microbatches
from scaling.config.resolve_model import check_model
from scaling.config.schema import Compute, Config, Model, knobs
from scaling.paths import must_be_utf8, must_take_checkpoints

CHOICES = {
    "model.norm": ("pre", "post"),
    "model.norm_kind": ("layer", "rms"),
    "model.parallel": ("no", "one_norm", "two_norms"),
    "model.activation": ("gelu_tanh", "gelu", "relu", "silu"),
    "model.positions": (
        "learned",
        "sinusoidal",
        "rotary",
        "alibi",
        "relative",
        "disentangled",
        "transformer_xl",
        "xlnet",
        "none",
    ),
    "model.sinusoid": ("halves", "interleaved"),
    "model.rotary.scaling": ("none", "linear", "llama3", "yarn"),
    "model.parametrization": ("standard", "mup", "completep"),
    "compute.dtype": ("bfloat16", "float32"),
    "compute.quantization": ("none", "int8", "fp8"),
    "compute.decode_int8": ("none", "weights", "cache", "both"),
    "data.objective": (
        "next_token",
        "mlm",
        "mlm_nsp",
        "mlm_sop",
        "tlm",
        "replaced_token",
        "span_corruption",
        "denoising",
        "prefix",
        "permutation",
        "pairs",
        "translations",
    ),
    "data.bad_records": ("error", "skip"),
    "checkpoint.choose": ("", "loss", "reward"),
    "align.loss_on": ("assistant", "all"),
    "rl.whiten": ("sample", "population", "none"),
    "rl.kl_in": ("reward", "loss"),
    "rl.kl_estimator": ("k1", "k2", "k3"),
    "rl.mean": ("token", "sequence", "constant", "prompt"),
    "rl.missing_end": ("keep", "replace", "add"),
    "dpo.loss": ("sigmoid", "ipo"),
    "dpo.pairs": ("all", "best_worst"),
    "optimizer.trained": ("all", "head"),
    "optimizer.schedule": ("cosine", "wsd", "linear", "inverse_sqrt", "constant"),
    "optimizer.state_dtype": ("float32", "bfloat16"),
}
ATTENTION = ("dense", "banded", "strided")

# The largest sensible values of any knob: steps and sizes of arrays are 32-bit integers, other counts must be exact as
# floats, and floats on devices have 32 bits.
_LARGEST, _LARGEST_COUNT, _LARGEST_FLOAT = 2**31 - 1, 2**53, 3e38
MOST_STEPS = _LARGEST  # the state counts them in int32

# (what a message says is right, test, knobs)
_RANGES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    (
        "at least 1",
        lambda v: v >= 1,
        "model.vocab_multiple model.context_length model.num_layers model.d_model model.num_heads "
        "model.band_width model.relative_distance model.rotary.factor model.base_width model.base_depth "
        "model.experts.per_token model.experts.every compute.scan_unroll compute.attention_block data.workers "
        "data.prefetch train.tokens train.batch_tokens train.ramp_start_tokens mesh.stage mesh.fsdp mesh.expert "
        "mesh.context mesh.tensor mesh.slices distributed.heartbeat_seconds distributed.join_seconds eval.tokens "
        "log.every_steps checkpoint.keep_last sample.tokens rl.response_tokens rl.samples rl.minibatches rl.passes "
        "rl.kl_horizon rl.pretraining_rows guard.store_seconds noise.span",
    ),
    (
        "0 or more",
        lambda v: v >= 0,
        "align.epochs align.lm_weight dpo.nll distill.layers distill.kl distill.lm distill.cosine lora.rank "
        "rl.value_rate rl.kl rl.kl_target rl.pretraining_weight "
        "model.disentangled.distance model.disentangled.buckets "
        "model.outputs model.token_types model.layer_groups model.encoder_layers "
        "model.generator_layers model.generator_width train.discriminator_weight "
        "model.vocab_size model.num_kv_heads model.d_head model.d_ff model.init_std model.attention_scale "
        "model.experts.count model.experts.d_ff model.experts.capacity model.experts.balance_loss model.experts.z_loss "
        "model.segment_length model.memory_length "
        "model.position_offset model.embedding_width model.rotary.dim model.rotary.original_length model.rotary.low "
        "model.rotary.high model.rotary.attention_factor train.sequence_length "
        "train.microbatch_sequences train.pipeline_microbatches train.ramp_tokens compute.loss_chunk train.z_loss "
        "data.source_length "
        "optimizer.peak_lr optimizer.weight_decay optimizer.clip_norm optimizer.warmup_tokens optimizer.decay_tokens "
        "distributed.num_processes eval.every_steps eval.batch_sequences eval.tasks_every_steps eval.tasks_limit "
        "checkpoint.every_steps checkpoint.keep_every_steps guard.rollback_after guard.hang_seconds "
        "guard.recompute_every_steps sample.temperature sample.top_k",
    ),
    ("more than 1, or 0 for off", lambda v: v == 0 or v > 1, "guard.spike_factor"),
    ("in [0, 2^32)", lambda v: 0 <= v < 2**32, "seed"),
    ("in [0, 1024]", lambda v: 0 <= v <= 1024, "mesh.cpu_devices"),
    (
        "more than 0",
        lambda v: v > 0,
        "train.cosine_scale dpo.beta lora.alpha distill.temperature "
        "model.norm_epsilon model.rotary.theta optimizer.epsilon rl.temperature rl.clip "
        "rl.value_clip",
    ),
    (
        "in [0, 1)",
        lambda v: 0 <= v < 1,
        "align.dropout align.warmup model.dropout_embedding model.dropout_attention model.dropout_residual "
        "data.validation_fraction optimizer.beta1 optimizer.beta2 rl.ema train.label_smoothing "
        "noise.deleted noise.masked noise.infilling",
    ),
    ("at least 0, -1 for all, or -2 for nothing", lambda v: v >= -2, "align.layers"),
    ("in [0, 2)", lambda v: 0 <= v < 2, "train.margin"),
    ("in [0, 0.5)", lambda v: 0 <= v < 0.5, "dpo.label_smoothing"),
    ("0 or more, or -1 for the control tokens that are new", lambda v: v >= -1, "lora.first_new_token"),
    ("in [2, 9]", lambda v: 2 <= v <= 9, "align.completions"),
    (
        "in [0, 1]",
        lambda v: 0 <= v <= 1,
        "optimizer.final_fraction rl.gamma rl.gae_lambda noise.random noise.kept noise.permuted noise.rotated",
    ),
    ("in (0, 1]", lambda v: 0 < v <= 1, "noise.rate"),
    ("at least 1, or -1 for all devices that the other axes do not use", lambda v: v >= 1 or v == -1, "mesh.data"),
    ("0 or more, or -1 for 'not given'", lambda v: v >= -1, "distributed.process_id"),
)


def resolve(
    config: Config, vocab_size: int | None = None, device_count: int | None = None, name: str | None = None
) -> Config:
    """Fills in values that others determine (d_head, d_ff, tokens of schedules, the mesh), and refuses impossible ones.

    To resolve a resolved config changes nothing.

    Args:
        config: as frozen from an experiment file and the command line.
        vocab_size: of the tokenizer, if it is known already; fills ``model.vocab_size``.
        device_count: devices of all processes, if it is known already; fills ``mesh.data``, and the mesh is checked.
        name: of the run; fills ``workdir`` with ``runs/<name>``.

    Raises:
        ValueError: an impossible value; the message names the knob, its value and what would be right.
    """
    _check_values(config)
    config = _derive(config, vocab_size, device_count, name)
    must_be_utf8("config.workdir", config.workdir)
    must_take_checkpoints("config.workdir", config.workdir)
    must_be_utf8("config.data.cache_dir", config.data.cache_dir)
    _check_data(config)
    check_model(config)
    remat.check(config)
    check_int8(config.compute)
    _check_train(config)
    _check_lora(config)
    _check_choice(config)
    if config.noise.kept > 1 - config.noise.random:
        right = f"must be at most {1 - config.noise.random:g}, what config.noise.random leaves"
        raise refused("noise.kept", config.noise.kept, right)
    check_mesh(config, device_count)
    check_pipeline(config)
    return config


def check_int8(compute: Compute, whose: str = "") -> None:
    """Refuses weights in 8 bits where products round weights themselves; the message begins with ``whose``."""
    if compute.int8_weights and compute.quantization != "none":
        right = f"must be 'none' with weights in 8 bits (config.compute.decode_int8={compute.decode_int8!r})"
        raise ValueError(f"{whose}{refused('compute.quantization', compute.quantization, right)}")


def must_be_wide(config: Config, what: str) -> None:
    """Refuses ``compute.decode_int8`` for ``what`` does more than to continue texts."""
    why = f"for {what}; 8 bits are for finished models that continue texts"
    must_be([("compute.decode_int8", config.compute.decode_int8, "none")], why)


def _check_choice(config: Config) -> None:
    by = config.checkpoint.choose
    if by and not config.eval.every_steps:
        right = f"must be more than 0 with config.checkpoint.choose={by!r}, which is a choice among several validations"
        raise refused("eval.every_steps", 0, right)
    if by == "reward" and not config.rl.reward:
        right = "must name what scores answers, with config.checkpoint.choose='reward': a run, or FILE.py:FUNCTION"
        raise refused("rl.reward", "", right)


def _check_values(config: Config) -> None:
    """Refuses values of single knobs, each without regard to the others."""
    values = {name.removeprefix("config."): value for name, value, _, _ in knobs(config)}
    for name, value in values.items():
        if isinstance(value, float) and not abs(value) <= _LARGEST_FLOAT:
            raise refused(name, value, f"must be a finite number, at most {_LARGEST_FLOAT:g}")
    for right, test, names in _RANGES:
        for name in names.split():
            if not test(values[name]):
                raise refused(name, values[name], f"must be {right}")
    for name, value in values.items():
        most = _LARGEST_COUNT if name.endswith(("tokens", "steps")) else _LARGEST
        if type(value) is int and value > most and name != "seed":
            raise refused(name, value, f"must be at most {most}")
    for name, choices in CHOICES.items():
        if values[name] not in choices:
            raise refused(name, values[name], f"must be one of {', '.join(x or repr(x) for x in choices)}")
    pattern = values["model.attention_pattern"]
    if not pattern or any(kind not in ATTENTION for kind in pattern):
        raise refused("model.attention_pattern", pattern, f"must be a list of {' or '.join(ATTENTION)}, at least one")
    matrices = values["lora.matrices"]
    if not matrices or any(name not in MATRICES for name in matrices):
        raise refused("lora.matrices", matrices, f"must be a list of names among {', '.join(MATRICES)}, at least one")
    for prompt in values["sample.prompts"]:
        if not isinstance(prompt, str):
            raise refused("sample.prompts", prompt, "must hold texts, in quotes")


def with_sizes(model: Model) -> Model:
    """The model with the sizes that its width determines: ``d_head``, ``d_ff``.

    Raises:
        ValueError: the heads do not divide the width.
    """
    if not model.d_head and model.d_model % model.num_heads:
        near = nearest_divisors(model.d_model, model.num_heads)
        right = f"must divide config.model.d_model={model.d_model}, as {near} would, or give config.model.d_head"
        raise refused("model.num_heads", model.num_heads, right)
    d_head = model.d_head or model.d_model // model.num_heads
    return dataclasses.replace(model, d_head=d_head, d_ff=model.d_ff or 4 * model.d_model)


def _derive(config: Config, vocab_size: int | None, device_count: int | None, name: str | None) -> Config:
    model, train, optimizer, mesh, evaluation = config.model, config.train, config.optimizer, config.mesh, config.eval
    if vocab_size is not None and model.vocab_size and model.vocab_size < vocab_size:
        raise refused(
            "model.vocab_size",
            model.vocab_size,
            f"is too small for the {vocab_size} tokens of tokenizer {config.data.tokenizer!r}; must be at least "
            "that, or 0 to take the tokenizer's",
        )
    model = dataclasses.replace(with_sizes(model), vocab_size=model.vocab_size or vocab_size or 0)
    sequence = train.sequence_length or model.context_length
    # With a ramp every batch consists of whole microbatches, so a microbatch is at most the smallest batch.
    smallest = train.ramp_start_tokens if train.ramp_tokens else train.batch_tokens
    train = dataclasses.replace(
        train,
        sequence_length=sequence,
        microbatch_sequences=train.microbatch_sequences or max(1, smallest // sequence),
    )
    if not optimizer.decay_tokens and optimizer.schedule != "constant":
        usual = {"wsd": train.tokens // 5, "inverse_sqrt": optimizer.warmup_tokens or train.batch_tokens}
        length = usual.get(optimizer.schedule, train.tokens)
        optimizer = dataclasses.replace(optimizer, decay_tokens=length)
    check_stages(mesh)
    if device_count is not None and mesh.data == -1:
        mesh = dataclasses.replace(mesh, data=data_axis(mesh, device_count))
    if mesh.stage > 1 and mesh.data > 0 and not train.pipeline_microbatches:
        train = dataclasses.replace(train, pipeline_microbatches=pipeline_microbatches(mesh, train))
    evaluation = dataclasses.replace(
        evaluation, batch_sequences=evaluation.batch_sequences or train.microbatch_sequences
    )
    return dataclasses.replace(
        config,
        workdir=config.workdir or (f"runs/{name}" if name else ""),
        model=model,
        train=train,
        optimizer=optimizer,
        mesh=mesh,
        eval=evaluation,
    )


def _check_data(config: Config) -> None:
    data = config.data
    if data.mixture and data.train:
        raise ValueError(
            f"config.data.train={data.train!r} and config.data.mixture are both set; with a mixture, set "
            "config.data.train=''"
        )
    if not data.mixture and not data.train:
        raise refused("data.train", data.train, "is empty; name files, 'books', or set config.data.mixture")
    if data.control_field and data.control_field == data.text_key:
        raise refused("data.control_field", data.control_field, "is the field of the text, config.data.text_key")
    for entry in data.mixture:
        pair = entry if isinstance(entry, tuple) and len(entry) == 2 else (None, None)
        path, weight = pair
        if not isinstance(path, str) or isinstance(weight, bool) or not isinstance(weight, int | float):
            raise refused("data.mixture", entry, "must hold pairs of (path, weight)")
        if not 0 < weight <= _LARGEST_FLOAT:
            raise refused("data.mixture", entry, f"must have weights more than 0, and at most {_LARGEST_FLOAT:g}")


def _check_lora(config: Config) -> None:
    """What adapters need beside the sizes of the model (``model.lora.check``)."""
    rank = config.lora.rank
    if not rank:
        return
    if not config.start:
        raise refused("lora.rank", rank, "needs config.start=RUN, whose weights stay as they are")
    wrong = (
        ("align.layers", config.align.layers, -1),
        ("optimizer.trained", config.optimizer.trained, "all"),
        ("model.parametrization", config.model.parametrization, "standard"),
    )
    must_be(wrong, f"with config.lora.rank={rank}")


def _check_train(config: Config) -> None:
    train, optimizer = config.train, config.optimizer
    sequence, micro = train.sequence_length, train.microbatch_sequences
    must_be_multiple("train.batch_tokens", train.batch_tokens, sequence, "config.train.sequence_length")
    batch = train.batch_tokens // sequence
    if micro > batch or batch % micro:
        raise refused(
            "train.microbatch_sequences",
            micro,
            f"must divide the {batch} sequences of config.train.batch_tokens={train.batch_tokens}, as "
            f"{nearest_divisors(batch, micro)} would",
        )
    if train.tokens < train.batch_tokens and not train.ramp_tokens:
        raise refused(
            "train.tokens",
            train.tokens,
            f"is less than one batch; must be at least config.train.batch_tokens={train.batch_tokens}",
        )
    if train.tokens // train.batch_tokens > MOST_STEPS:
        raise refused("train.tokens", train.tokens, f"is more than {MOST_STEPS} steps of config.train.batch_tokens")
    if train.ramp_tokens:
        if train.ramp_start_tokens > train.batch_tokens:
            raise refused(
                "train.ramp_start_tokens",
                train.ramp_start_tokens,
                f"must be at most config.train.batch_tokens={train.batch_tokens}",
            )
        unit = f"a microbatch, config.train.microbatch_sequences={micro} of {sequence} tokens"
        must_be_multiple("train.ramp_start_tokens", train.ramp_start_tokens, micro * sequence, unit)
        if train.tokens < train.ramp_start_tokens:
            raise refused(
                "train.tokens",
                train.tokens,
                f"is less than the first batch; must be at least config.train.ramp_start_tokens="
                f"{train.ramp_start_tokens}",
            )
    if optimizer.schedule == "wsd":
        room = train.tokens - optimizer.warmup_tokens
        if optimizer.decay_tokens > room:
            raise refused(
                "optimizer.decay_tokens",
                optimizer.decay_tokens,
                f"must leave room for the warm-up: at most config.train.tokens - config.optimizer.warmup_tokens={room}",
            )
    elif optimizer.schedule == "inverse_sqrt" and optimizer.warmup_tokens > optimizer.decay_tokens:
        raise refused(
            "optimizer.warmup_tokens",
            optimizer.warmup_tokens,
            f"must be at most config.optimizer.decay_tokens={optimizer.decay_tokens}, where the decay begins",
        )
    elif optimizer.schedule in ("cosine", "linear") and optimizer.warmup_tokens >= optimizer.decay_tokens:
        raise refused(
            "optimizer.warmup_tokens",
            optimizer.warmup_tokens,
            f"must be less than config.optimizer.decay_tokens={optimizer.decay_tokens}, where the decay ends",
        )
