"""Experiment files that tests write: a small run on bytes, or a sweep of such runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

KNOBS = {
    "data.tokenizer": "bytes",
    "model.context_length": 32,
    "model.num_layers": 1,
    "model.d_model": 8,
    "model.num_heads": 1,
    "compute.dtype": "float32",
    "train.batch_tokens": 128,
    "compute.loss_chunk": 0,
    "optimizer.warmup_tokens": 0,
    "eval.tokens": 256,
    "log.tensorboard": False,
    "log.every_steps": 1,
}
SHAPES = "[Shape(1, 8, 1), Shape(1, 16, 1)]"


def experiment(workdir: Path | str, sweep: str = "", **knobs: Any) -> str:
    """The text of a file with ``get_config``, or with ``get_sweep`` if the arguments of ``Sweep`` are given.

    Args:
        workdir: of the run or the sweep.
        sweep: what follows the config, for example ``[Shape(1, 8, 1)], [tokens(1024)]``.
        knobs: besides ``KNOBS``; a dot is written as two underscores.
    """
    chosen: Mapping[str, Any] = KNOBS | {name.replace("__", "."): value for name, value in knobs.items()}
    lines = [
        "from scaling.config import default_config",
        "from scaling.sweep.plan import Shape, Sweep, tokens",
        "",
        "def get_sweep():" if sweep else "def get_config():",
        "    config = default_config()",
        f"    config.workdir = {str(workdir)!r}",
        *(f"    config.{name} = {value!r}" for name, value in chosen.items()),
        f"    return Sweep(config, {sweep})" if sweep else "    return config",
    ]
    return "\n".join(lines) + "\n"
