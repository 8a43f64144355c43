"""Plans a run on given devices: memory, step time and days, from the compiler or from shapes alone."""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling import cache, durable
from scaling.catalog import chips, flops
from scaling.config import schema as cfg
from scaling.config.resolve import resolve, with_sizes
from scaling.evaluate.tasks.knobs import check_tasks
from scaling.plan import estimate, topology
from scaling.plan.request import Request
from scaling.train.schedule import BatchSchedule

if TYPE_CHECKING:
    from scaling.plan.predict import Prediction

HEADROOM = 0.05  # of the memory that should stay free
OPERATIONS = 40  # the longest that are kept
VOCABULARIES = {"gpt2": 50257}  # known without the tokenizer's files
READ = "weights and cache"  # what decoding must read for each token
RL = ("ppo", "grpo")  # steps that are iterations of learning from rewards
PACKAGE = Path(__file__).resolve().parents[1]
# What of a config changes no compiled program; of ``eval`` the batch does, and is asked for beside.
_NOT_COMPILED = ("workdir", "seed", "data", "distributed", "eval", "log", "checkpoint", "sample")
_REMATERIALIZED = "Involuntary full rematerialization"


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan of a step on devices that need not be here.

    Attributes:
        where: the topology or kind of chip.
        chips: number of chips.
        layout: mesh, remat and microbatch, in words.
        step: train, eval, generate, ppo or grpo.
        memory: part -> bytes a device.
        hbm: bytes that a device has.
        refusal: why the step does not fit into memory; then the numbers are 0.
        seconds: predicted time of a step; for generate, of one token of every text.
        prefill: for generate, seconds for reading the prompts; otherwise 0.
        tokens: of one step.
        run_tokens: of the whole run.
        flops_per_token: the model's FLOPs a token, as MFU counts them.
        peak: FLOP/s of all chips.
        parts: kind of work -> seconds of a step.
        again: kind of work -> seconds of these that are spent on recomputation for the backward pass.
        layer: kind of work -> seconds of one layer.
        ideal: kind of work -> seconds of the model's products at the peak, nothing computed twice; of generate,
            ``READ`` -> seconds to read weights and cache once.
        collectives: kind -> bytes that a chip sends in a step, those of them hidden behind computation, calls.
        operations: the longest of JAX's operations -> seconds of a step.
        cycles: the compiler's estimate, summed over the step; 0 without a compiler.
        compile_seconds: duration of the compilation; 0 without a compiler.
        assumptions: sentences about the assumptions of the plan.
        host: bytes of the host's memory for each device.
    """

    where: str
    chips: int
    layout: str
    step: str
    memory: dict[str, int]
    hbm: float
    refusal: str
    seconds: float
    prefill: float
    tokens: int
    run_tokens: int
    flops_per_token: float
    peak: float
    parts: dict[str, float]
    again: dict[str, float]
    layer: dict[str, float]
    ideal: dict[str, float]
    collectives: dict[str, tuple[float, float, int]]
    operations: dict[str, float]
    cycles: int
    compile_seconds: float
    assumptions: tuple[str, ...]
    host: int = 0

    @property
    def bytes(self) -> int:
        """Memory that a device needs."""
        return sum(self.memory.values())

    @property
    def headroom(self) -> float:
        """Fraction of the memory that is free; negative if the step does not fit."""
        return -1.0 if self.refusal else 1 - self.bytes / self.hbm

    @property
    def fits(self) -> bool:
        return self.headroom >= HEADROOM

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def mfu(self) -> float:
        return self.tokens_per_second * self.flops_per_token / self.peak

    @property
    def days(self) -> float:
        """Days of the whole run, without pauses."""
        return self.run_tokens / self.tokens_per_second / 86400 if self.seconds else 0.0

    @property
    def chip_hours(self) -> float:
        return 24 * self.days * self.chips


class WholeArrays(ValueError):
    """The layout makes the partitioner gather whole arrays."""


def resolved(config: cfg.Config, device_count: int, name: str | None = None) -> cfg.Config:
    """The config on so many devices, at its full batch; the vocabulary of ``gpt2`` is known without its files.

    Raises:
        ValueError: an impossible config.
    """
    vocab = VOCABULARIES.get(config.data.tokenizer)
    if vocab is None and not config.model.vocab_size:
        from scaling.data import tokenizer

        vocab = tokenizer.load(config.data.tokenizer).vocab_size
    found = resolve(config, vocab_size=vocab, device_count=device_count, name=name)
    check_tasks(found)
    # Without the ramp the compiler knows the number of microbatches, and so what they take.
    return dataclasses.replace(found, train=dataclasses.replace(found.train, ramp_tokens=0))


def for_search(config: cfg.Config, device_count: int, name: str | None = None) -> cfg.Config:
    """The config without a layout of its own, and without a batch ramp, whose first batches would bound every layout.

    Of the mesh, slices and the context axis stay.

    Raises:
        ValueError: an impossible config.
    """
    mesh = dataclasses.replace(config.mesh, stage=1, data=-1, fsdp=1, tensor=1)
    train = dataclasses.replace(config.train, microbatch_sequences=0, pipeline_microbatches=0, ramp_tokens=0)
    try:
        return resolved(dataclasses.replace(config, mesh=mesh, train=train), device_count, name)
    except ValueError:  # more devices than sequences: the tensor axis takes the rest
        mesh = dataclasses.replace(
            mesh, tensor=math.gcd(device_count // (mesh.slices * mesh.context), config.model.num_heads)
        )
        return resolved(dataclasses.replace(config, mesh=mesh, train=train), device_count, name)


def compiled(
    config: cfg.Config,
    name: str,
    slices: int,
    step: str = "train",
    fresh: bool = False,
    request: Request | None = None,
) -> Plan:
    """Compiles a step for a TPU topology and reads what the compiler says; results are cached by content.

    Args:
        config: resolved for the devices of the topology.
        name: topology of a slice, such as ``v5e:4x4``.
        slices: how many slices.
        step: train, eval, generate, ppo or grpo.
        fresh: do not look into the cache.
        request: what is generated.

    Raises:
        FileNotFoundError: there is no such reward.
        ValueError: no compiler, no such topology, or an iteration that cannot be.
        WholeArrays: a layout that makes the partitioner gather whole arrays.
    """
    chip, _ = topology.parse(name)
    reward = _reward_of(config, step) if step in RL else None
    path = _cache_path(config, name, slices, step, request or reward)
    if not fresh and (kept := _kept(path)):
        return kept
    with compiler_output():
        devices = topology.devices(name, slices)
    from scaling.plan.compiled import DoesNotFit

    base = _empty(config, f"{slices} x {name}" if slices > 1 else name, chip, len(devices), step, request)
    try:
        with compiler_output() as said:
            read = functools.partial(_generation, request) if request else _step
            if step in RL:
                read = functools.partial(_iteration, reward)
            found = read(base, config, chip, devices)
    except DoesNotFit as error:
        found = dataclasses.replace(base, refusal=str(error))
    else:
        if _REMATERIALIZED in said[0]:
            raise WholeArrays(
                f"the compiler makes arrays whole to lay them out anew on {name} ({_REMATERIALIZED}); "
                "choose another config.mesh"
            )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.replace_text(path, json.dumps(dataclasses.asdict(found)), writer=str(os.getpid()))
    except OSError as error:  # a compilation is not thrown away because it cannot be kept
        print(f"scaling plan: the result is not kept ({error.strerror}: {path.parent})", file=sys.stderr)
    return found


def _step(base: Plan, config: cfg.Config, chip: chips.Chip, devices: list[Any]) -> Plan:
    from scaling.plan import hlo, predict
    from scaling.plan.compiled import compile_step

    program = compile_step(config, devices, base.step)
    microbatches = BatchSchedule.from_config(config.train).max_microbatches
    guess = predict.predict(hlo.parse(program.text), chip, microbatches)
    if base.step == "train":
        guess = guess.calibrated(predict.calibration(chip).factor)
    length, scale = config.train.sequence_length, program.tokens * (3 if base.step == "train" else 1) / base.peak
    attention = scale * flops.attention_per_token(config.model, length, config.data.source_length)
    unembedding = scale * 2 * config.model.vocab_size * config.model.d_model * config.predicted
    products = scale * flops.of_pretraining(config) / 3 - attention - unembedding
    kernels = predict.KERNELS if predict.KERNELS in guess.parts else predict.PRODUCTS
    ideal = {predict.PRODUCTS: products, predict.UNEMBEDDING: unembedding}
    ideal[kernels] = ideal.get(kernels, 0.0) + attention
    return dataclasses.replace(
        _predicted(base, guess, chip, config),
        memory=dataclasses.asdict(program.memory),
        tokens=program.tokens,
        ideal=ideal,
        compile_seconds=program.seconds,
        host=program.host,
    )


def _generation(request: Request, base: Plan, config: cfg.Config, chip: chips.Chip, devices: list[Any]) -> Plan:
    from scaling.plan import hlo, predict
    from scaling.plan.decoding import compile_generation

    program = compile_generation(config, devices, request)
    later = request.tokens - 1  # the first token comes with the prompts
    guess = predict.predict(hlo.parse(program.decode), chip, later).divided(later)
    return dataclasses.replace(
        _predicted(base, guess, chip, config),
        memory=program.memory,
        prefill=predict.predict(hlo.parse(program.prefill), chip).seconds,
        tokens=request.batch_size,
        ideal={READ: program.read / (chip.hbm_bandwidth / chip.devices)},
        compile_seconds=program.seconds,
    )


def _reward_of(config: cfg.Config, step: str) -> cfg.Model | None:
    """``reward_model`` of an iteration that can be; what cannot is refused as in a training."""
    from scaling.align.rl.prompts import check

    check(config, critic=step == "ppo")
    return reward_model(config)


def _iteration(reward: cfg.Model | None, base: Plan, config: cfg.Config, chip: chips.Chip, devices: list[Any]) -> Plan:
    from scaling.plan import predict
    from scaling.plan.iteration import compile_iteration

    found = compile_iteration(config, reward, base.step == "ppo", chip, devices)
    return dataclasses.replace(
        base,
        memory=found.memory,
        seconds=sum(found.seconds.values()),
        tokens=found.tokens,
        parts=found.seconds,
        cycles=found.cycles,
        compile_seconds=found.compile_seconds,
        assumptions=predict.assumptions(chip, config.mesh.slices, "train"),
    )


def reward_model(config: cfg.Config) -> cfg.Model | None:
    """The model that ``config.rl.reward`` names, a run or the file of an experiment; None = a function.

    Raises:
        FileNotFoundError, ValueError: there is neither.
    """
    spec = config.rl.reward
    if spec.endswith(".py"):
        from scaling.config.files import load

        return dataclasses.replace(with_sizes(load(spec).model), vocab_size=config.model.vocab_size)
    from scaling.align import rewards
    from scaling.runs.config_json import read_config_json

    if rewards.of_texts(spec) is not None:
        return None
    return cfg.freeze(read_config_json(spec)["config"]).model


def _predicted(base: Plan, guess: "Prediction", chip: chips.Chip, config: cfg.Config) -> Plan:
    from scaling.plan import predict

    layers = config.model.num_layers
    return dataclasses.replace(
        base,
        seconds=guess.seconds,
        parts={kind: part.seconds for kind, part in guess.parts.items()} | {"exposed collectives": guess.exposed},
        again={kind: part.again for kind, part in guess.parts.items() if part.again},
        layer={kind: part.layers / layers for kind, part in guess.parts.items() if part.layers},
        collectives={k: (c.bytes, c.hidden_bytes, c.calls) for k, c in guess.collectives.items()},
        operations=dict(list(guess.operations.items())[:OPERATIONS]),
        cycles=guess.cycles,
        assumptions=predict.assumptions(chip, config.mesh.slices, base.step, guess.collectives)
        + predict.missing(guess.unread),
    )


def estimated(config: cfg.Config, kind: str, count: int) -> Plan:
    """Memory and time from shapes alone, in milliseconds; ``kind`` is a chip of ``scaling.catalog.chips``."""
    chip = chips.find(kind)
    assert chip is not None
    guess = estimate.train_step(config, chip)
    return dataclasses.replace(
        _empty(config, chip.name, chip, count * chip.devices, "train"),
        memory=guess.memory,
        seconds=guess.seconds,
        tokens=config.train.batch_tokens,
        parts=guess.parts,
        assumptions=estimate.ASSUMPTIONS,
        host=guess.host,
    )


def _empty(
    config: cfg.Config,
    where: str,
    chip: chips.Chip,
    device_count: int,
    step: str,
    request: Request | None = None,
) -> Plan:
    model, train, mesh = config.model, config.train, config.mesh
    shards = mesh.shards
    stages = f"stage={mesh.stage} ({train.pipeline_microbatches} parts) " if mesh.stage > 1 else ""
    inner = "".join(f"{axis}={size} " for axis in ("expert", "context") if (size := getattr(mesh, axis)) > 1)
    sequences = train.microbatch_sequences if step == "train" else config.eval.batch_sequences
    whole = BatchSchedule.from_config(train).max_microbatches if step == "train" else 1
    work = (
        f"remat={config.compute.remat}, {sequences / shards:g} sequences of {train.sequence_length} a shard, "
        f"{whole} microbatches"
    )
    flops_per_token = flops.of_pretraining(config) / (1 if step == "train" else 3)
    if request:
        work = f"{request.batch_size} texts, {request.prompt_tokens} tokens of prompts and {request.tokens} new ones"
        # A new token sees all before it: as many as the tokens of a sequence of twice that length do on average.
        flops_per_token = flops.forward_per_token(model, 2 * request.prompt_tokens + request.tokens)
    return Plan(
        where=where,
        chips=device_count // chip.devices,
        layout=f"slices={mesh.slices} {stages}data={mesh.data} fsdp={mesh.fsdp} {inner}tensor={mesh.tensor}, {work}",
        step=step,
        memory={},
        hbm=chip.hbm / chip.devices,
        refusal="",
        seconds=0.0,
        prefill=0.0,
        tokens=0,
        run_tokens=train.tokens,
        flops_per_token=flops_per_token,
        peak=chip.flops / chip.devices * device_count,
        parts={},
        again={},
        layer={},
        ideal={},
        collectives={},
        operations={},
        cycles=0,
        compile_seconds=0.0,
        assumptions=(),
    )


def _cache_path(config: cfg.Config, name: str, slices: int, step: str, more: Request | cfg.Model | None) -> Path:
    """The key in the cache, of everything on which the program depends: config, topology, versions, our source.

    Args:
        config: resolved.
        name: of the topology.
        slices: of it.
        step: of the plan.
        more: what is generated, or the model that scores answers, which ``config.rl.reward`` only names.
    """
    values = {key: value for key, value in cfg.to_dict(config).items() if key not in _NOT_COMPILED}
    versions = []
    for package in ("jax", "jaxlib", "libtpu", "flax", "optax", "qwix"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{package} {importlib.metadata.version(package)}")
    source = hashlib.sha256()
    for folder in ("align/rl", "generate", "model", "objectives", "parallel", "plan", "train"):
        for path in sorted((PACKAGE / folder).rglob("*.py")):
            source.update(path.read_bytes())
    for name_of_file in ("catalog/chips.py", "catalog/flops.py"):  # which a prediction is computed with
        source.update((PACKAGE / name_of_file).read_bytes())
    asked = dataclasses.asdict(more) if more else config.eval.batch_sequences
    # Another libtpu than the package's, and options of the compiler.
    versions += [os.environ.get(name, "") for name in ("TPU_LIBRARY_PATH", "XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    text = json.dumps([values, asked, name, slices, step, versions, source.hexdigest()])
    return cache.root() / "plans" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _kept(path: Path) -> Plan | None:
    """The plan in the cache, if there is one; one that is damaged is made again."""
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_bytes())
        values["collectives"] = {kind: tuple(numbers) for kind, numbers in values["collectives"].items()}
        return Plan(**values | {"assumptions": tuple(values["assumptions"])})
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        print(f"scaling plan: the kept result {path} is damaged and is made again ({error!r})", file=sys.stderr)
        return None


@contextlib.contextmanager
def compiler_output() -> Iterator[list[str]]:
    """Keeps what the compiler writes to stderr (from C++, much of it about hardware that is not there) in a list."""
    sys.stderr.flush()
    kept, said = os.dup(2), list[str]()
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            said.append(file.read().decode(errors="replace"))
