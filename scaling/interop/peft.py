"""A run's adapters as a folder of PEFT: ``adapter_config.json`` and ``adapter_model.safetensors``.

The folder changes a model whose folder is that of the run's base, as ``export`` writes it. Which modules there are, and
how their axes lie, the tables of ``interop/families`` say. PEFT adds alpha / r * lora_B lora_A to a module's weight,
[outputs, inputs], with lora_A [r, inputs] and lora_B [outputs, r].
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scaling.config import schema as cfg
from scaling.interop import config_keys, new_folder, shards, tokenizer_files, weights
from scaling.model import lora
from scaling.runs.config_json import read_config_json
from scaling.runs.model import load_adapters
from scaling.runs.start import Start

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_BEFORE = "base_model.model."  # PEFT's own part of each name
_AFTER = ".weight"


class _Module(NamedTuple):
    """A module of theirs that has an adapter.

    Attributes:
        entry: its weight.
        parts: of our parameters in it, the numbers of those that have adapters.
        a: lora_A, [rank, inputs].
        b: lora_B, [outputs, rank].
        transposed: its weight is [inputs, outputs], as GPT-2's Conv1D has it.
    """

    entry: weights.Tensor
    parts: tuple[int, ...]
    a: np.ndarray
    b: np.ndarray
    transposed: bool


def export(run_dir: str | os.PathLike[str], output_dir: str | os.PathLike[str], dtype: str = "float32") -> None:
    """Writes the adapters of a run's newest whole checkpoint; all of the folder or nothing.

    Args:
        run_dir: of a run with ``config.lora.rank``.
        output_dir: new or empty; local.
        dtype: of the tensors, a key of ``shards.DTYPES``.

    Raises:
        ValueError: a run without adapters, or with more than PEFT's adapters can hold; or no family of Hugging Face can
            express the model.
        FileExistsError: the folder holds something.
        OSError: it cannot be written.
    """
    values = read_config_json(run_dir)
    target = Path(output_dir).absolute()
    new_folder.check_new(target)
    config, params = load_adapters(run_dir)
    _check(config, run_dir)
    beside = tokenizer_files.of_run(run_dir, values, config.model)
    _, family = config_keys.from_model(config.model, beside.model_type)
    found = list(_modules(config, weights.layer_tensors(config.model, family), params))
    tensors = {
        f"{_BEFORE}{family.prefix}{module.entry.name.removesuffix(_AFTER)}.{name}{_AFTER}": tensor
        for module in found
        for name, tensor in (("lora_A", module.a), ("lora_B", module.b))
    }
    about = _config(config.lora, found, read_config_json(Start.noted(run_dir).run).get("imported"), family.layers)
    with new_folder.filling(target) as partial:
        (partial / CONFIG).write_text(json.dumps(about, indent=2, sort_keys=True) + "\n")
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        shards.write(partial, shapes, tensors.items(), dtype, np.inf)
        (partial / shards.WEIGHTS).rename(partial / WEIGHTS)


def _check(config: cfg.Config, run_dir: str | os.PathLike[str]) -> None:
    """Refuses what PEFT's adapters cannot hold."""
    rows = config.model.vocab_size - config.lora.first_new_token
    for wrong, what in (
        (rows, f"trained rows of {rows} tokens"),
        (config.model.outputs, "a head of its own"),
        (config.model.experts.count, "experts, whose matrices are no modules"),
    ):
        if wrong:
            raise ValueError(f"{run_dir} has {what}, which PEFT's adapters cannot hold; export it without --adapters")


def _modules(config: cfg.Config, entries: list[weights.Tensor], params: Mapping[str, np.ndarray]) -> Iterator[_Module]:
    """The modules that have adapters."""
    inputs = {".".join(matrix.path): matrix.inputs for matrix in lora.adapted(config.model, config.lora)}
    for entry in entries:
        parts = tuple(i for i, path in enumerate(entry.ours) if path in inputs)
        if parts:
            yield _module(entry, parts, inputs[entry.ours[parts[0]]], params)


def _module(entry: weights.Tensor, parts: tuple[int, ...], inputs: int, params: Mapping[str, np.ndarray]) -> _Module:
    """A module of several of our matrices has the ranks of all of them: each reads all inputs, and writes its outputs.

    Args:
        entry: of the module's weight.
        parts: numbers of the matrices that have adapters.
        inputs: how many axes of a matrix are inputs.
        params: the adapters by path.
    """
    axes = weights.AXES[entry.ours[0].partition(".")[2]]
    into, out = axes[:inputs], axes[inputs:]
    first, second = entry.layout.split()
    transposed = set(first) == set(into)
    theirs_in, theirs_out = (first, second) if transposed else (second, first)
    every_a, every_b = ([params[f"{entry.ours[i]}.{name}"][entry.place[0]] for i in parts] for name in (lora.A, lora.B))
    a = np.concatenate(every_a, axis=-1)  # [inputs, ranks]
    b = np.zeros((len(entry.ours), a.shape[-1], *every_b[0].shape[1:]), np.float32)  # [matrices, ranks, outputs]
    rank = len(every_b[0])
    for n, (i, part) in enumerate(zip(parts, every_b, strict=True)):
        b[i, n * rank : (n + 1) * rank] = part
    count = str(len(entry.ours))
    theirs_out = theirs_out if count in theirs_out else count + theirs_out
    lora_a = _ordered(a, f"{into}r", f"r{theirs_in}").reshape(a.shape[-1], -1)
    lora_b = _ordered(b, f"{count}r{out}", f"{theirs_out}r").reshape(-1, b.shape[1])
    return _Module(entry, parts, lora_a, lora_b, transposed)


def _ordered(array: np.ndarray, axes: str, order: str) -> np.ndarray:
    """An array whose axes have these letters, with its axes in another order."""
    return np.ascontiguousarray(array.transpose([axes.index(axis) for axis in order]))


def _config(adapters: cfg.Lora, found: list[_Module], source: Any, layers: str) -> dict[str, Any]:
    """What PEFT reads before the tensors."""

    def short(module: _Module) -> str:
        """The name of a module in its layer, as PEFT looks for it at the ends of names."""
        return module.entry.name.removeprefix(f"{layers}{module.entry.layer}.").removesuffix(_AFTER)

    alpha = int(adapters.alpha) if adapters.alpha == int(adapters.alpha) else adapters.alpha
    several = {short(module): len(module.parts) for module in found if len(module.parts) > 1}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": source,
        "r": adapters.rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": found[0].transposed,
        "inference_mode": True,
        "target_modules": sorted({short(module) for module in found}),
        "rank_pattern": {name: count * adapters.rank for name, count in several.items()},
        "alpha_pattern": {name: count * alpha for name, count in several.items()},
    }
