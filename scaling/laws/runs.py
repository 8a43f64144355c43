"""Points from run directories: ``config.json``, ``metrics.jsonl``, ``evals.jsonl``, nothing else. No JAX, no model."""

import dataclasses
import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from scaling import config as cfg
from scaling.laws.curves import read_lines
from scaling.laws.points import Points
from scaling.sizes import parameters

COUNTS = ("total", "without_embeddings", "kaplan", "chinchilla")


def find_runs(paths: Sequence[epath.PathLike]) -> list[epath.Path]:
    """Run directories among ``paths`` and directly inside them, in order of name.

    Raises:
        ValueError: a path that neither is nor holds a run directory.
        FileNotFoundError: no such path.
    """
    found = []
    for path in map(epath.Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        if (path / "config.json").exists():
            found.append(path)
            continue
        inside = sorted(p for p in path.iterdir() if (p / "config.json").exists()) if path.is_dir() else []
        if not inside:
            raise ValueError(f"{path} is not a run directory (no config.json) and holds none")
        found += inside
    return found


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory: ``values`` of its config.json, and its records, read when they are asked for."""

    path: epath.Path
    values: Mapping[str, Any]

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved config."""
        return self.values["config"]

    @functools.cached_property
    def model(self) -> cfg.Model:
        try:
            return cfg.freeze({"model": self.config["model"]}).model
        except ValueError as error:
            raise ValueError(f"{self.path}/config.json: {error}") from None

    @functools.cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """Logged steps."""
        return [line for line in read_lines(self.path / "metrics.jsonl") if "loss" in line]

    @functools.cached_property
    def evals(self) -> list[dict[str, Any]]:
        """Validation losses; evaluations of tasks have none."""
        return [line for line in read_lines(self.path / "evals.jsonl") if "loss" in line]

    def records(self, loss: str) -> list[dict[str, Any]]:
        """Records of the validation or the training loss."""
        return self.evals if loss == "validation" else self.metrics

    def num_params(self, count: str) -> int:
        """N by a convention of ``COUNTS``."""
        return getattr(parameters(self.model), count)

    @property
    def flops_per_token(self) -> float:
        """As the run counted them, forward and backward."""
        return self.values.get("flops_per_token", 6 * self.num_params("total"))

    def unusable(self, loss: str, curves: bool = False) -> str:
        """Why the run gives no point (with ``curves``, no curve); empty if it does."""
        records, planned = self.records(loss), self.config["train"]["tokens"]
        for record in (*records, *self.metrics[-1:]):  # a diverged run ends with the step that was no number
            if not all(math.isfinite(record.get(key, 0.0)) for key in ("loss", "grad_norm")):
                return f"diverged, its loss is {record['loss']} at step {record['step']}"
        if not records:
            return f"has no {loss} loss yet"
        if not curves and records[-1]["tokens"] < planned - self.config["train"]["batch_tokens"]:
            return f"is not finished, {records[-1]['tokens']:,} of {planned:,} tokens"
        return ""


def load(path: epath.PathLike) -> Run:
    """Opens a run directory.

    Raises:
        ValueError: a config.json that is not that of a run.
    """
    path = epath.Path(path)
    try:
        values = json.loads((path / "config.json").read_text())
    except ValueError as error:
        raise ValueError(f"{path}/config.json is not JSON ({error}); the file is damaged") from None
    config = values.get("config") if isinstance(values, dict) else None
    if not isinstance(config, dict) or not {"model", "data", "train"} <= config.keys():
        raise ValueError(f"{path}/config.json is not that of a run: it has no 'config' with model, data and train")
    return Run(path, values)


def read_runs(
    paths: Sequence[epath.PathLike], *, count: str = "total", loss: str = "validation", curves: bool = False
) -> Points:
    """One point a finished run, or every evaluation of every run: ``run_points`` of the runs in ``paths``."""
    return run_points((load(path) for path in find_runs(paths)), count=count, loss=loss, curves=curves)


def run_points(runs: Iterable[Run], *, count: str = "total", loss: str = "validation", curves: bool = False) -> Points:
    """One point a finished run, or every evaluation of every run.

    Args:
        runs: run directories.
        count: convention by which parameters are counted: total, without_embeddings, kaplan or chinchilla
            (``scaling.sizes.Parameters``).
        loss: validation (``evals.jsonl``) or training (``metrics.jsonl``).
        curves: every record is a point, not only the last; unfinished runs count too.

    Returns:
        The points; runs without a usable loss are named in ``left_out``.

    Raises:
        ValueError: runs whose losses cannot be compared (another tokenizer, data or validation), no usable run, or a
            damaged config.
    """
    if count not in COUNTS:
        raise ValueError(f"--params={count} of run directories must be {', '.join(COUNTS[:-1])} or {COUNTS[-1]}")
    if loss not in ("validation", "training"):
        raise ValueError(f"--loss={loss} of run directories must be validation or training")
    rows: list[tuple[str, float, float, float, float]] = []
    left_out, measured = [], {}
    for run in runs:
        reason = run.unusable(loss, curves)
        if reason:
            left_out.append(f"{run.path}: {reason}")
            continue
        name, size = str(run.path), float(run.num_params(count))
        measured[name] = _measured_on(run.config)
        for record in run.records(loss)[slice(None) if curves else slice(-1, None)]:
            tokens = float(record["tokens"])
            rows.append((name, size, tokens, float(record["loss"]), run.flops_per_token * tokens))
    if not rows:
        raise ValueError("no run can be used: " + "; ".join(left_out))
    _refuse_mixture(measured)
    names = tuple(row[0] for row in rows)
    columns = {
        name: np.array([row[i] for row in rows]) for i, name in enumerate(("params", "tokens", "loss", "flops"), 1)
    }
    return Points(names, names, columns, tuple(left_out))


def _measured_on(config: Mapping[str, Any]) -> dict[str, Any]:
    data = config["data"]
    keys = ("tokenizer", "train", "mixture", "validation", "validation_fraction")
    return {f"config.data.{key}": data.get(key) for key in keys} | {
        "config.model.vocab_size": config["model"].get("vocab_size")
    }


def _refuse_mixture(measured: dict[str, dict[str, Any]]) -> None:
    (first, expected), *others = measured.items()
    for run, found in others:
        for knob, value in found.items():
            if value != expected[knob]:
                raise ValueError(
                    f"{run} has {knob}={value!r} but {first} has {expected[knob]!r}; "
                    "their losses cannot be compared in one fit"
                )
