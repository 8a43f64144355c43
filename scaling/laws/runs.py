"""Points from run directories: ``config.json``, ``metrics.jsonl``, ``evals.jsonl``, nothing else. No JAX, no model."""

import json
import math
from collections.abc import Sequence
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
    """
    found = []
    for path in map(epath.Path, paths):
        if (path / "config.json").exists():
            found.append(path)
            continue
        inside = sorted(p for p in path.iterdir() if (p / "config.json").exists()) if path.is_dir() else []
        if not inside:
            raise ValueError(f"{path} is not a run directory (no config.json) and holds none")
        found += inside
    return found


def read_runs(
    paths: Sequence[epath.PathLike], *, count: str = "total", loss: str = "validation", curves: bool = False
) -> Points:
    """One point a finished run, or every evaluation of every run.

    Args:
        paths: run directories, or folders of them.
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
    for run in find_runs(paths):
        values = _config(run)
        lines = read_lines(run / ("evals.jsonl" if loss == "validation" else "metrics.jsonl"))
        records = [line for line in lines if "loss" in line]  # evaluations of tasks have none
        reason = _unusable(values["config"], records, loss, curves)
        if reason:
            left_out.append(f"{run}: {reason}")
            continue
        measured[str(run)] = _measured_on(values["config"])
        size = float(getattr(parameters(_model(run, values["config"])), count))
        for record in records if curves else records[-1:]:
            tokens = float(record["tokens"])
            rows.append(
                (str(run), size, tokens, float(record["loss"]), values.get("flops_per_token", 6 * size) * tokens)
            )
    if not rows:
        raise ValueError("no run can be used: " + "; ".join(left_out))
    _refuse_mixture(measured)
    names = tuple(row[0] for row in rows)
    columns = {
        name: np.array([row[i] for row in rows]) for i, name in enumerate(("params", "tokens", "loss", "flops"), 1)
    }
    return Points(names, names, columns, tuple(left_out))


def _config(run: epath.Path) -> dict[str, Any]:
    try:
        values = json.loads((run / "config.json").read_text())
    except ValueError as error:
        raise ValueError(f"{run}/config.json is not JSON ({error}); the file is damaged") from None
    if not isinstance(values, dict) or not {"model", "data", "train"} <= values.get("config", {}).keys():
        raise ValueError(f"{run}/config.json is not that of a run: it has no 'config' with model, data and train")
    return values


def _model(run: epath.Path, config: dict[str, Any]) -> cfg.Model:
    try:
        return cfg.freeze({"model": config["model"]}).model
    except ValueError as error:
        raise ValueError(f"{run}/config.json: {error}") from None


def _unusable(config: dict[str, Any], records: list[dict[str, Any]], loss: str, curves: bool) -> str:
    """Why a run gives no point; empty if it does."""
    if not records:
        return f"has no {loss} loss yet"
    for record in records:
        if not math.isfinite(record["loss"]):
            return f"diverged, its {loss} loss is {record['loss']} at step {record['step']}"
    planned = config["train"]["tokens"]
    if not curves and records[-1]["tokens"] < planned - config["train"]["batch_tokens"]:
        return f"is not finished, {records[-1]['tokens']:,} of {planned:,} tokens"
    return ""


def _measured_on(config: dict[str, Any]) -> dict[str, Any]:
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
