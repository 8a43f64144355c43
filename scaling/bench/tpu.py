"""Our train step and MaxText's, compiled for the same TPU slice that is not there: what ``scaling bench tpu`` prints.

Same topology, sequences a chip, vocabulary, float32 weights with bfloat16 products, AdamW, clipping, dense attention by
a kernel, and the same libtpu, whose ``estimated_cycles`` are the yardstick. Kernels carry no cycles; their products and
predicted times stand apart.
"""

import dataclasses
import json
import os
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jaxlib

from scaling.bench import maxtext_client as maxtext
from scaling.bench import programs
from scaling.bench.programs import Kept
from scaling.catalog import chips, flops, recipes
from scaling.config import schema as cfg
from scaling.config.files import apply_overrides, split_arguments
from scaling.config.remat import AUTO
from scaling.config.resolve import must_be_wide
from scaling.parallel import compiler
from scaling.parallel.mesh import make_mesh
from scaling.plan import hlo, plan, predict, recompute, topology

# MaxText's recipes call it DISABLE_COLLECTIVE_MATMUL; without it 1.3B on v5e:4x4 takes three times the cycles.
NO_RING = "--xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000"


@dataclasses.dataclass(frozen=True)
class Case:
    """Where and how a size is compiled.

    Attributes:
        topology: of one slice.
        sequences: a chip.
        length: tokens of a sequence.
        published: family and name of the size in ``catalog.families``; None = the GPT-3 size that the case is named by.
        ours: tries, each ``knob=value`` of our config in a row; parameters lie over all chips if they say nothing else.
        theirs: tries, each ``knob=value`` of MaxText's in a row.
    """

    topology: str
    sequences: int
    length: int = 2048
    published: tuple[str, str] | None = None
    ours: tuple[str, ...] = ("compute.remat=projections", "compute.remat=full")
    theirs: tuple[str, ...] = tuple(f"remat_policy={kind} compile_xla_flags={NO_RING}" for kind in ("minimal", "full"))


CASES = {
    "1300m": Case("v5e:4x4", 4),
    "2700m": Case("v5e:4x8", 4),
    "6700m": Case("v5e:8x8", 4),
    "13b": Case("v5e:8x16", 4),
    "175b": Case("v5p:8x8x8", 2),
    "llama2-7b": Case("v5e:4x8", 2, 4096, ("Llama 2", "7b")),
    "mixtral-8x7b": Case(
        "v5p:4x4x4",
        2,
        4096,
        ("Mixtral", "8x7b"),
        ours=tuple(f"compute.remat={remat} mesh.expert=8 mesh.fsdp=8" for remat in ("projections", "full")),
    ),
}


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled train step.

    Attributes:
        knobs: that it was compiled with.
        prediction: what its text says; None = it does not fit.
        bytes: a device.
        seconds: that compiling took.
        ours: whether it is our step.
        chosen: what ``compute.remat=auto`` became.
    """

    knobs: str
    prediction: predict.Prediction | None
    bytes: int = 0
    seconds: float = 0.0
    ours: bool = False
    chosen: str = ""


def bench(size: str, case: Case, python: str | None) -> Iterator[str]:
    """Compiles every try of ours and of MaxText's, and sets the best of each side by side.

    Args:
        size: of ``CASES``.
        case: topology, batch and tries.
        python: an interpreter that has MaxText; None = without it.

    Yields:
        Lines of text.

    Raises:
        ValueError: knobs, topology or interpreter cannot be used, or nothing fits.
    """
    where = f"{size} on {case.topology}, {case.sequences} sequences of {case.length} a chip"
    yield f"{where}, libtpu {maxtext.version(maxtext.library())}"
    best = []
    tries = [("ours", knobs) for knobs in case.ours] + ([("MaxText", knobs) for knobs in case.theirs] if python else [])
    for who, knobs in tries:
        step = compiled(who, size, case, knobs, python)
        yield f"  {who:<8} {line(step, size, case)}"
        yield from (f"    {text}" for text in predict.missing(step.prediction.unread if step.prediction else ()))
        best += [(who, step)] if step.prediction else []
    found = {who: min((s for w, s in best if w == who), key=cycles, default=None) for who, _ in tries}
    if missing := [who for who, step in found.items() if step is None]:
        raise ValueError(f"no try of {' and '.join(missing)} fits {case.topology}")
    steps = [step.prediction for step in found.values() if step and step.prediction]
    if len(steps) == 2:
        mine, peer = steps
        yield (
            f"  best of each: {mine.cycles / peer.cycles:.2f} of MaxText's cycles, "
            f"{mine.seconds / peer.seconds:.2f} of its predicted time"
        )
    yield from _table(steps)


def compiled(who: str, size: str, case: Case, knobs: str, python: str | None) -> Step:
    """The step of one side, from the cache if it was compiled before.

    Args:
        who: "ours" or "MaxText".
        size: of the model.
        case: slice and batch.
        knobs: of that side.
        python: an interpreter that has MaxText.
    """
    return _ours(size, case, knobs) if who == "ours" else _theirs(python or "", size, case, knobs)


def cycles(step: Step) -> int:
    """The compiler's, of a step that fits."""
    assert step.prediction
    return step.prediction.cycles


def mfu(step: Step, size: str, case: Case) -> float:
    """Model FLOPs utilization that the prediction amounts to."""
    assert step.prediction
    chip, _ = topology.parse(case.topology)
    # A try of ours may change the model itself; MaxText's has the model of the case.
    model = _config(size, case, step.knobs if step.ours else "").model
    work = case.sequences * case.length * flops.training_per_token(model, case.length)
    return work / step.prediction.seconds / (chip.flops / chip.devices)


def line(step: Step, size: str, case: Case) -> str:
    """What was tried, and what it takes."""
    found, chosen = step.prediction, f" ({step.chosen})" if step.chosen else ""
    if found is None:
        return f"{step.knobs}{chosen}: does not fit"
    return (
        f"{step.knobs}{chosen}: {found.cycles / 1e6:,.1f}M cycles, predicted {1e3 * found.seconds:,.0f} ms, "
        f"MFU {100 * mfu(step, size, case):.1f} %, {step.bytes / 2**30:.1f} GiB a chip, "
        f"compiled in {step.seconds:.0f} s"
    )


def _table(steps: list[predict.Prediction]) -> Iterator[str]:
    """Cycles and predicted milliseconds of each kind of work, ours first."""
    kinds = sorted({kind for step in steps for kind in step.parts}, key=lambda kind: -steps[0].parts[kind].seconds)
    for kind in kinds:
        parts = [step.parts.get(kind, predict.Part()) for step in steps]
        yield f"    {kind:<24}" + "".join(f"{p.cycles / 1e6:>10,.1f}M {1e3 * p.seconds:>8,.1f} ms" for p in parts)
    yield f"    {'exposed collectives':<24}" + "".join(f"{'':>11} {1e3 * step.exposed:>8,.1f} ms" for step in steps)


def _config(size: str, case: Case, knobs: str) -> cfg.Config:
    """Dense attention, no ramp, one microbatch, parameters over all chips, unless the knobs say otherwise."""
    count = topology.count(case.topology, 1)
    if case.published is None:
        config = recipes.gpt3(size)
        config.model.attention_pattern = ("dense",)
    else:
        config = recipes.family(*case.published, 1e12)
    config.mesh.fsdp = count
    config.model.context_length = case.length
    config.train.ramp_tokens = 0
    config.train.microbatch_sequences = case.sequences * count
    config.train.batch_tokens = case.sequences * count * case.length
    _, overrides, _ = split_arguments([f"--config.{knob}" for knob in knobs.split()])
    config = apply_overrides(config, overrides)
    found = plan.resolved(config, count)
    must_be_wide(found, "a train step")
    return found


def _ours(size: str, case: Case, knobs: str) -> Step:
    config = _config(size, case, knobs)
    chip, _ = topology.parse(case.topology)
    chosen = ""
    if config.compute.remat == AUTO:
        chosen = recompute.choose(config, chip, (1 - plan.HEADROOM) * chip.hbm / chip.devices, host=True)
        config = recompute.with_remat(config, chosen)
    with plan.compiler_output():
        devices = topology.devices(case.topology)
        from scaling.plan.compiled import DoesNotFit, lower_step, program

        jax.config.update("jax_traceback_in_locations_limit", 0)  # no paths of our files in the key
        lowered = lower_step(config, devices)

        def make() -> Kept:
            try:
                made = program(lowered)
            except DoesNotFit:
                return Kept("", 0, 0.0)
            return Kept(made.text, sum(dataclasses.asdict(made.memory).values()), made.seconds)

        options = json.dumps(compiler.options(devices, config.network), sort_keys=True)
        order = json.dumps([device.id for device in make_mesh(config.mesh, devices).devices.flat])
        key = ["ours", case.topology, order, options, jaxlib.__version__, lowered.step.as_text(), *_compiler()]
        found = programs.kept(key, make)
    return dataclasses.replace(_step(knobs, found, chip), ours=True, chosen=chosen)


def _compiler() -> tuple[str, ...]:
    """Which one it is, and what the environment tells it."""
    return maxtext.identity(maxtext.library()), *(os.environ.get(n, "") for n in ("XLA_FLAGS", "LIBTPU_INIT_ARGS"))


def _step(knobs: str, found: Kept, chip: chips.Chip) -> Step:
    if not found.text:
        return Step(knobs, None)
    return Step(knobs, predict.predict(hlo.parse(found.text), chip), found.bytes, found.seconds)


def knobs_of(model: cfg.Model, case: Case) -> dict[str, Any]:
    """The same model, batch and optimizer in MaxText's words (its base.yml and models/*.yml, 0.2.5)."""
    knobs = maxtext.topology_knobs(case.topology) | {
        "base_num_decoder_layers": model.num_layers,
        "base_emb_dim": model.d_model,
        "base_num_query_heads": model.num_heads,
        "base_num_kv_heads": model.kv_heads,
        "head_dim": model.d_head,
        "base_mlp_dim": model.d_ff,
        "vocab_size": model.padded_vocab,
        "max_target_length": case.length,
        "logits_via_embedding": model.tied_embedding,
        "normalization_layer_epsilon": model.norm_epsilon,
        "enable_dropout": False,
        "opt_type": "adamw",
        "gradient_clipping_threshold": 1.0,
        "per_device_batch_size": case.sequences,
    }
    if model.positions == "learned":
        return knobs | {
            "decoder_block": "gpt3",
            "mlp_activations": "['gelu']",
            "trainable_position_size": case.length,
            "normalize_embedding_logits": False,
            "fused_qkv": True,
        }
    knobs |= {
        "decoder_block": "mixtral" if model.experts.count else "llama2",
        "mlp_activations": "['silu','linear']",
        "rope_max_timescale": int(model.rotary.theta),
    }
    if model.experts.count:
        # Tokens beyond the capacity are dropped, as ours are. MaxText's kernels drop none, and carry no cycles.
        knobs |= {
            "num_experts": model.experts.count,
            "num_experts_per_tok": model.experts.per_token,
            "base_moe_mlp_dim": model.d_expert,
            "load_balance_loss_weight": model.experts.balance_loss,
            "sparse_matmul": False,
            "megablox": False,
            "capacity_factor": model.experts.capacity,
        }
    return knobs


def _theirs(python: str, size: str, case: Case, knobs: str) -> Step:
    if wrong := [knob for knob in shlex.split(knobs) if "=" not in knob]:
        raise ValueError(f"--theirs: {wrong[0]!r} is no knob=value of MaxText")
    library, model = maxtext.library(), _config(size, case, "").model
    values = knobs_of(model, case) | dict(knob.split("=", 1) for knob in shlex.split(knobs))
    chip, _ = topology.parse(case.topology)

    def make() -> Kept:
        with tempfile.TemporaryDirectory() as folder:
            text = Path(folder) / "step.hlo"
            asked = values | {"base_output_directory": folder}
            answer = maxtext.compile_step(python, library, [f"{name}={value}" for name, value in asked.items()], text)
            if "RESOURCE_EXHAUSTED" in answer.get("error", ""):
                return Kept("", 0, 0.0)
            if "error" in answer:
                raise ValueError(f"the peer {python} cannot compile {knobs}: {answer['error'][:500]}")
            return Kept(text.read_text(), answer["bytes"], answer["seconds"])

    asked = json.dumps({name: str(value) for name, value in values.items()}, sort_keys=True)
    return _step(knobs, programs.kept(["MaxText", asked, maxtext.versions(python), *_compiler()], make), chip)
