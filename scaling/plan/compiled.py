"""Compiles the real steps of a run for devices that are not here, and reads the compiler's results."""

import dataclasses
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from scaling.config import schema as cfg
from scaling.data.batch import Batch, Scored, of_sequences
from scaling.objectives.pretraining import pretraining
from scaling.parallel.mesh import make_mesh
from scaling.parallel.sharding import batch_sharding, replicated
from scaling.train import state as train_state
from scaling.train.schedule import BatchSchedule
from scaling.train.step import make_eval_step, make_train_step

STEPS = ("train", "eval")


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory of a compiled step, bytes a device.

    Attributes:
        params: parameters.
        optimizer: its state.
        batch: tokens of one step.
        temporary: activations, gradients and everything else that lives inside the step.
        other: results that do not take the place of an input.
    """

    params: int
    optimizer: int
    batch: int
    temporary: int
    other: int


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step.

    Attributes:
        memory: bytes a device.
        text: the optimized program.
        seconds: that compiling took.
        tokens: that one call of it reads, over all devices.
        host: bytes of the host's memory for each device.
    """

    memory: Memory
    text: str
    seconds: float
    tokens: int
    host: int


class DoesNotFit(Exception):
    """The compiler cannot fit the step into the memory of a device."""


def compile_step(config: cfg.Config, devices: list[Any], step: str = "train") -> Program:
    """Compiles one step.

    Args:
        config: resolved for these devices.
        devices: of a topology or of this machine.
        step: train or eval.

    Raises:
        DoesNotFit: there is not enough memory; the compiler's sentence.
    """
    assert step in STEPS
    mesh = make_mesh(config.mesh, devices)
    schedule = BatchSchedule.from_config(config.train)
    length = config.train.sequence_length
    with jax.set_mesh(mesh):
        state, base = train_state.abstract_state(config, mesh), train_state.abstract_base(config, mesh)
        if step == "train":
            shape = (schedule.max_microbatches, schedule.microbatch, length)
            scalars = [_scalar(mesh, kind) for kind in ("float32", "int32")]
            jitted: Any = make_train_step(config, mesh, pretraining(config))
            arguments: list[Any] = [state, _batch(config, mesh, shape), *scalars]
        else:
            shape = (1, config.eval.batch_sequences, length)
            jitted, arguments = (
                make_eval_step(config, mesh, pretraining(config)),
                [state["params"], _batch(config, mesh, shape)],
            )
        compiled, text, seconds = compile_lowered(jitted.lower(*arguments, base=base))
    found = compiled.memory_analysis()
    params = shard_bytes([state["params"], base])
    optimizer = shard_bytes([state["optimizer"], state["step"]]) if step == "train" else 0
    batch = max(0, found.argument_size_in_bytes - params - optimizer)
    memory = Memory(
        params=params,
        optimizer=optimizer,
        batch=batch,
        temporary=found.temp_size_in_bytes,
        other=max(0, found.output_size_in_bytes - found.alias_size_in_bytes) + found.generated_code_size_in_bytes,
    )
    tokens = math.prod(shape)
    return Program(memory, text, seconds, tokens, found.host_temp_size_in_bytes)


def compile_lowered(lowered: jax.stages.Lowered) -> tuple[Any, str, float]:
    """The program, its text, and the seconds that compiling took.

    Raises:
        DoesNotFit: there is not enough memory; the compiler's sentence.
        ValueError: the compiler refuses, or its program cannot be read.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="scaling-") as folder:
        # Without a pattern for passes libtpu writes nothing of the optimized program; this one matches no pass.
        options: dict[str, str | bool] = {
            "xla_dump_to": folder,
            "xla_dump_hlo_as_text": True,
            "xla_dump_hlo_pass_re": "^$",
        }
        try:
            compiled = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                raise DoesNotFit(_sentence(str(error))) from None
            raise ValueError(f"the compiler refuses the step: {_sentence(str(error))}") from error
        seconds = time.monotonic() - start
        return compiled, _text(compiled, Path(folder)), seconds


def _text(compiled: Any, folder: Path) -> str:
    """The optimized program as JAX prints it, else as the compiler itself wrote it to ``folder``.

    JAX reads the program with its own XLA first, which refuses forms that a newer compiler makes. Both texts say the
    same.

    Raises:
        ValueError: there is neither.
    """
    try:
        text: str = compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        written = sorted(folder.glob("*.after_codegen.txt"), key=lambda path: path.stat().st_size)
        if not written:
            raise ValueError(
                f"JAX {jax.__version__} cannot read the compiler's program ({_sentence(str(error))}); "
                "use a libtpu of the same time"
            ) from error
        text = written[-1].read_text()
    return text


def shard_bytes(tree: Any) -> int:
    """Bytes that one device holds of a tree of arrays with shardings."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.shape else ()
        total += math.prod(shape) * leaf.dtype.itemsize
    return total


def _batch(config: cfg.Config, mesh: Mesh, shape: tuple[int, ...]) -> Batch | Scored:
    """Shapes of what the loader gives."""
    separator = 0 if config.model.document_mask else None
    plain = of_sequences(np.zeros((*shape[:-1], shape[-1] + 1), np.int32), separator=separator)
    made: Batch | Scored = plain
    ids, numbers = plain.tokens, plain.weights
    if config.data.objective in ("mlm_nsp", "mlm_sop"):
        made = Scored(ids, ids, numbers, None, None, numbers, numbers, ids)
    elif config.data.objective == "replaced_token":
        made = plain._replace(draws=numbers)
    elif config.data.objective == "tlm":
        made = plain._replace(positions=ids, segments=ids, types=ids)
    elif config.data.objective == "permutation":
        made = plain._replace(order=ids)
    elif config.model.encoder_layers or config.data.objective == "translations":
        source = np.zeros((*shape[:-1], config.data.source_length or shape[-1]), np.int32)
        made = plain._replace(source=source, source_segments=source)
        if not config.model.encoder_layers:
            made = made._replace(segments=ids)
    if config.model.prefix_lm and isinstance(made, Batch):
        made = made._replace(order=ids)
    if config.data.pack and isinstance(made, Batch):
        made = made._replace(positions=ids, segments=ids, source_positions=made.source)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh)), made)


def _scalar(mesh: Mesh, kind: str) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((), kind, sharding=replicated(mesh))


def _sentence(text: str) -> str:
    """The first sentence that says how much is missing."""
    for line in text.splitlines():
        if "exceed" in line.lower() or "ran out of memory" in line.lower():
            return line.strip()[:300]
    return text.splitlines()[0][:300]
