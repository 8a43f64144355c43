"""What a run will need on given devices: memory, step time, days; from the compiler or from shapes alone."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from scaling import cache, chips, flops
from scaling import config as cfg
from scaling.plan import estimate, topology
from scaling.resolve import resolve
from scaling.train.schedule import BatchSchedule

HEADROOM = 0.05  # of the memory that should stay free
OPERATIONS = 40  # the longest that are kept
VOCABULARIES = {"gpt2": 50257}  # known without the tokenizer's files
PACKAGE = Path(__file__).resolve().parents[1]
_REMATERIALIZED = "Involuntary full rematerialization"


@dataclasses.dataclass(frozen=True)
class Plan:
    """A step on devices that need not be there.

    Attributes:
        where: the topology or kind of chip.
        chips: how many.
        layout: mesh, remat and microbatch, in words.
        step: train or eval.
        memory: part -> bytes a device.
        hbm: bytes that a device has.
        refusal: why the compiler could not fit it; then the numbers are 0.
        seconds: of one step, predicted.
        tokens: of one step.
        run_tokens: of the whole run.
        flops_per_token: by which MFU is reckoned.
        peak: FLOP/s of all chips.
        parts: kind of work -> seconds of a step.
        collectives: kind -> bytes that a chip sends in a step, those of them hidden behind computation, calls.
        operations: the longest of JAX's operations -> seconds of a step.
        cycles: that the compiler estimates, summed over the step; 0 without it.
        compile_seconds: that compiling took; 0 without.
        assumptions: sentences.
    """

    where: str
    chips: int
    layout: str
    step: str
    memory: dict[str, int]
    hbm: float
    refusal: str
    seconds: float
    tokens: int
    run_tokens: int
    flops_per_token: float
    peak: float
    parts: dict[str, float]
    collectives: dict[str, tuple[float, float, int]]
    operations: dict[str, float]
    cycles: int
    compile_seconds: float
    assumptions: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Memory that a device needs."""
        return sum(self.memory.values())

    @property
    def headroom(self) -> float:
        """Part of the memory that stays free; below 0: it does not fit."""
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
        """Of the whole run, without pauses."""
        return self.run_tokens / self.tokens_per_second / 86400 if self.seconds else 0.0

    @property
    def chip_hours(self) -> float:
        return 24 * self.days * self.chips


def resolved(config: cfg.Config, device_count: int, name: str | None = None) -> cfg.Config:
    """The config on so many devices; the vocabulary of ``gpt2`` is known without its files.

    Raises:
        ValueError: an impossible config.
    """
    vocab = VOCABULARIES.get(config.data.tokenizer)
    if vocab is None and not config.model.vocab_size:
        from scaling.data import tokenizer

        vocab = tokenizer.load(config.data.tokenizer).vocab_size
    return resolve(config, vocab_size=vocab, device_count=device_count, name=name)


def for_search(config: cfg.Config, device_count: int, name: str | None = None) -> cfg.Config:
    """The config without a layout of its own, and without a batch ramp, whose first batches would bound every layout.

    Of the mesh, slices and the context axis stay.

    Raises:
        ValueError: an impossible config.
    """
    mesh = dataclasses.replace(config.mesh, data=-1, fsdp=1, tensor=1)
    train = dataclasses.replace(config.train, microbatch_sequences=0, ramp_tokens=0)
    try:
        return resolved(dataclasses.replace(config, mesh=mesh, train=train), device_count, name)
    except ValueError:  # more devices than sequences: the tensor axis takes the rest
        mesh = dataclasses.replace(
            mesh, tensor=math.gcd(device_count // (mesh.slices * mesh.context), config.model.num_heads)
        )
        return resolved(dataclasses.replace(config, mesh=mesh, train=train), device_count, name)


def compiled(config: cfg.Config, name: str, slices: int, step: str = "train", fresh: bool = False) -> Plan:
    """Compiles a step for a TPU topology and reads what the compiler says; results are cached by content.

    Args:
        config: resolved for the devices of the topology.
        name: topology of a slice, such as ``v5e:4x4``.
        slices: how many slices.
        step: train or eval.
        fresh: do not look into the cache.

    Raises:
        ValueError: no compiler, no such topology, or a layout that makes the partitioner gather whole arrays.
    """
    chip, _ = topology.parse(name)
    path = _cache_path(config, name, slices, step)
    if path.exists() and not fresh:
        return _from_json(json.loads(path.read_text()))
    with _compiler_output():
        devices = topology.devices(name, slices)
    from scaling.plan import hlo, predict
    from scaling.plan.compiled import DoesNotFit, compile_step

    base = _empty(config, f"{slices} x {name}" if slices > 1 else name, chip, len(devices), step)
    try:
        with _compiler_output() as said:
            program = compile_step(config, devices, step)
    except DoesNotFit as error:
        found = dataclasses.replace(base, refusal=str(error))
    else:
        if _REMATERIALIZED in said[0]:
            raise ValueError(
                f"the compiler makes arrays whole to lay them out anew on {name} ({_REMATERIALIZED}); "
                "choose another config.mesh"
            )
        guess = predict.predict(hlo.parse(program.text), chip)
        found = dataclasses.replace(
            base,
            memory=dataclasses.asdict(program.memory),
            seconds=guess.seconds,
            tokens=program.tokens,
            parts={kind: part.seconds for kind, part in guess.parts.items()} | {"exposed collectives": guess.exposed},
            collectives={k: (c.bytes, c.hidden_bytes, c.calls) for k, c in guess.collectives.items()},
            operations=dict(list(guess.operations.items())[:OPERATIONS]),
            cycles=guess.cycles,
            compile_seconds=program.seconds,
            assumptions=predict.assumptions(slices),
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(dataclasses.asdict(found)))
    partial.replace(path)
    return found


def estimated(config: cfg.Config, kind: str, count: int) -> Plan:
    """Memory and time from shapes alone, in milliseconds; ``kind`` is a chip of ``scaling.chips``."""
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
    )


def _empty(config: cfg.Config, where: str, chip: chips.Chip, device_count: int, step: str) -> Plan:
    model, train, mesh = config.model, config.train, config.mesh
    shards = mesh.slices * mesh.data * mesh.fsdp
    sequences = train.microbatch_sequences if step == "train" else config.eval.batch_sequences
    whole = BatchSchedule.from_config(train).max_microbatches if step == "train" else 1
    training = flops.training_per_token(model, train.sequence_length)
    return Plan(
        where=where,
        chips=device_count // chip.devices,
        layout=(
            f"slices={mesh.slices} data={mesh.data} fsdp={mesh.fsdp} "
            f"{f'context={mesh.context} ' if mesh.context > 1 else ''}tensor={mesh.tensor}, remat={model.remat}, "
            f"{sequences / shards:g} sequences of {train.sequence_length} a shard, {whole} microbatches"
        ),
        step=step,
        memory={},
        hbm=chip.hbm / chip.devices,
        refusal="",
        seconds=0.0,
        tokens=0,
        run_tokens=train.tokens,
        flops_per_token=training if step == "train" else training / 3,
        peak=chip.flops / chip.devices * device_count,
        parts={},
        collectives={},
        operations={},
        cycles=0,
        compile_seconds=0.0,
        assumptions=(),
    )


def _cache_path(config: cfg.Config, name: str, slices: int, step: str) -> Path:
    """By everything that the compiled program depends on: config, topology, versions, and our own source."""
    values = {
        key: value for key, value in cfg.to_dict(config).items() if key in ("model", "train", "optimizer", "mesh")
    }
    versions = []
    for package in ("jax", "jaxlib", "libtpu", "flax", "optax"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{package} {importlib.metadata.version(package)}")
    source = hashlib.sha256()
    for folder in ("model", "parallel", "plan", "train"):
        for path in sorted((PACKAGE / folder).glob("*.py")):
            source.update(path.read_bytes())
    text = json.dumps([values, config.eval.batch_sequences, name, slices, step, versions, source.hexdigest()])
    return Path(cache.root()).expanduser() / "plans" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _from_json(values: dict) -> Plan:
    values["collectives"] = {kind: tuple(numbers) for kind, numbers in values["collectives"].items()}
    return Plan(**values | {"assumptions": tuple(values["assumptions"])})


@contextlib.contextmanager
def _compiler_output() -> Iterator[list[str]]:
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
