"""Reads points from run directories, and gives the reason for each run that has none. No JAX, no model."""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from etils import epath

from scaling.laws.points import Points
from scaling.runs.config_json import UNIQUE
from scaling.runs.json_lines import is_number, is_sound
from scaling.runs.run_directory import RunDirectory, find_runs, load

BY_REWARDS = "was trained by rewards, so it has no loss of texts"
COUNTS = ("active", "total", "without_embeddings", "kaplan", "chinchilla")


def unusable(run: RunDirectory, loss: str, curves: bool = False) -> str:
    """Why a run gives no point (with ``curves``, no curve); empty if it does."""
    if not run.begun:
        return "has not begun, or failed before its first step; see train.log"
    if run.learns_from_rewards:
        return BY_REWARDS
    if wrong := fault(run, loss):
        return wrong
    records, train = run.records(loss), run.config["train"]
    if curves or (records and records[-1]["tokens"] >= train["tokens"] - train["batch_tokens"]):
        return "" if records else f"has no {loss} loss yet"
    if loss == "validation" and run.metrics:  # the training got further than its last validation
        if reason := unusable(run, "training"):
            return reason
        return "has no validation loss of its end"
    if not records:
        return f"has no {loss} loss yet"
    return f"is not finished, {records[-1]['tokens']:,} of {train['tokens']:,} tokens"


def fault(run: RunDirectory, loss: str) -> str:
    """A sentence about the first number that makes the records of a run useless; empty if there is none."""
    last = run.metrics[-1:] if loss == "validation" else []  # where a diverged run says so
    for number, record in enumerate((*run.records(loss), *last), 1):
        step = record.get("step")
        where = f"at step {step}" if is_number(step) else f"in its record {number}"
        for key, name in (("loss", "loss"), ("grad_norm", "gradient norm")):
            if isinstance(record.get(key), float) and not math.isfinite(record[key]):
                return f"diverged, its {name} is {record[key]} {where}"
        for key, verb in (("loss", "is"), ("tokens", "are")):
            if not (is_number(record.get(key)) and record[key]):
                return f"its {key} {verb} {json.dumps(record.get(key))}, not a positive number, {where}"
        if not is_sound(record):
            return f"its step is {json.dumps(step)}, not a number, {where}"
    return ""


def reasons_left_out(runs: Sequence[RunDirectory], loss: str, curves: bool = False) -> list[str]:
    """Why each run is not used; empty for those that are. Of copies of a run the first is used."""
    found: list[str] = []
    first: dict[str, epath.Path] = {}
    for run in runs:
        reason = unusable(run, loss, curves)
        if not reason:
            last = run.records(loss)[-1]
            key = json.dumps([run.num_params("total"), last["tokens"], last["loss"], _measured_on(run, loss)])
            if key in first:
                reason = f"is a copy of {first[key]}, with the same parameters, tokens and loss"
            first.setdefault(key, run.path)
        found.append(reason)
    return found


def read_runs(
    paths: Sequence[epath.PathLike],
    *,
    count: str = "active",
    loss: str = "validation",
    curves: bool = False,
    repeated: bool = False,
) -> Points:
    """One point a finished run, or every evaluation of every run: ``run_points`` of the runs in ``paths``."""
    runs = (load(path) for path in find_runs(paths))
    return run_points(runs, count=count, loss=loss, curves=curves, repeated=repeated)


def run_points(
    runs: Iterable[RunDirectory],
    *,
    count: str = "active",
    loss: str = "validation",
    curves: bool = False,
    repeated: bool = False,
) -> Points:
    """One point a finished run, or every evaluation of every run.

    Args:
        runs: run directories.
        count: convention by which parameters are counted, of ``COUNTS``
            (``scaling.catalog.sizes.Parameters``).
        loss: validation (``evals.jsonl``) or training (``metrics.jsonl``).
        curves: every record is a point, not only the last; unfinished runs count too.
        repeated: the points have their unique tokens, too. Runs that name the same ``data.validation`` may then be
            trained on different text, such as parts of one corpus of which some are repeated.

    Returns:
        The points; runs without a usable loss and copies of others are named in ``left_out``.

    Raises:
        ValueError: runs whose losses cannot be compared (another tokenizer, data, validation or length of sequences),
            no usable run, a damaged config, or ``repeated`` and a run that does not tell its unique tokens.
    """
    if count not in COUNTS:
        raise ValueError(f"--params={count} of run directories must be {', '.join(COUNTS[:-1])} or {COUNTS[-1]}")
    if loss not in ("validation", "training"):
        raise ValueError(f"--loss={loss} of run directories must be validation or training")
    rows: list[tuple[str, float, float, float, float, float]] = []
    left_out, measured = [], {}
    runs = list(runs)
    for run, reason in zip(runs, reasons_left_out(runs, loss, curves), strict=True):
        if reason:
            left_out.append(f"{run.path}: {reason}")
            continue
        name, size = str(run.path), float(run.num_params(count))
        measured[name] = _measured_on(run, loss)
        if repeated and loss == "validation" and measured[name]["config.data.validation"]:
            del measured[name]["config.data.train"], measured[name]["config.data.mixture"]
        unique = _unique(run) if repeated else math.nan
        for record in run.records(loss)[slice(None) if curves else slice(-1, None)]:
            tokens = float(record["tokens"])
            rows.append((name, size, tokens, float(record["loss"]), run.flops_per_token * tokens, unique))
    if not rows:
        raise ValueError("no run can be used: " + "; ".join(left_out))
    _refuse_mixture(measured)
    names = tuple(row[0] for row in rows)
    quantities = ("params", "tokens", "loss", "flops", *(["unique"] if repeated else ()))
    columns = {name: np.array([row[i] for row in rows]) for i, name in enumerate(quantities, 1)}
    return Points(names, names, columns, tuple(left_out))


def _unique(run: RunDirectory) -> float:
    value = run.values.get(UNIQUE)
    if not (is_number(value) and value):
        raise ValueError(
            f"{run.path}/config.json has no {UNIQUE}, as runs of older versions; give a table with a column of them"
        )
    return float(value)


def _measured_on(run: RunDirectory, loss: str) -> dict[str, Any]:
    """The values that two runs must share for their losses to be comparable."""
    data, model, train = (run.config[section] for section in ("data", "model", "train"))
    keys = ("tokenizer", "train", "mixture", "validation", "validation_fraction")
    shared = {f"config.data.{key}": data.get(key) for key in keys}
    shared["tokenizer_fingerprint"] = run.values.get("tokenizer_fingerprint")
    shared["config.model.vocab_size"] = model.get("vocab_size")
    # Longer sequences see more context, and their loss is lower.
    shared["config.train.sequence_length"] = train.get("sequence_length") or model.get("context_length")
    if loss == "validation":
        counted: Any = run.evals[-1].get("eval_tokens")  # config.eval.tokens, cut to what there was
        shared["eval_tokens"] = round(counted) if is_number(counted) else (run.config.get("eval") or {}).get("tokens")
    return shared


def _refuse_mixture(measured: dict[str, dict[str, Any]]) -> None:
    (first, expected), *others = measured.items()
    for run, found in others:
        for knob, value in found.items():
            if knob == "tokenizer_fingerprint" and None in (value, expected[knob]):
                continue  # a run of an older version does not tell
            if value != expected[knob]:
                raise ValueError(
                    f"{run} has {knob}={value!r} but {first} has {expected[knob]!r}; "
                    "their losses cannot be compared in one fit"
                )
