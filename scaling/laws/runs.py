"""Points from run directories: ``config.json``, ``metrics.jsonl``, ``evals.jsonl``, nothing else. No JAX, no model.

A run that a sweep started and that wrote no ``config.json`` has a ``plan.json``: it gives no point, and is named.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from scaling import config as cfg
from scaling.laws.curves import Unreadable, is_number, is_sound, parse_json, read_lines
from scaling.laws.points import Points
from scaling.own_files import is_own
from scaling.sizes import parameters

COUNTS = ("total", "without_embeddings", "kaplan", "chinchilla")


def find_runs(paths: Sequence[epath.PathLike]) -> list[epath.Path]:
    """Run directories among ``paths`` and directly inside them, in order of name, each once.

    Of several paths (``runs/demo/*``) those are passed over that the product writes beside runs: a report, launch.json,
    fits, logs.

    Raises:
        ValueError: a path that neither is nor holds a run directory.
        FileNotFoundError: no such path.
    """
    found = []
    every = [epath.Path(path) for path in paths]
    beside = [path for path in every if is_own(path)]
    for path in every if len(beside) == len(every) else [path for path in every if path not in beside]:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        if _is_run(path):
            found.append(path)
            continue
        inside = sorted(p for p in path.iterdir() if _is_run(p)) if path.is_dir() else []
        if not inside and path.suffix in (".csv", ".jsonl") and len(every) > 1:
            raise ValueError(f"{path} is not a run directory; a table is read where it is the only path")
        if not inside:
            raise ValueError(
                f"{path} is not a run directory (no config.json) and holds none; folders in it are not searched"
            )
        found += inside
    return list(dict.fromkeys(found))


def _is_run(path: epath.Path) -> bool:
    return (path / "config.json").exists() or (path / "plan.json").exists()


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory: ``values`` of its config.json, and its records, read when they are asked for.

    ``begun`` is false where there is only a plan.json; ``values`` are then its config alone.
    """

    path: epath.Path
    values: Mapping[str, Any]
    begun: bool = True

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved config."""
        return self.values["config"]

    @functools.cached_property
    def model(self) -> cfg.Model:
        try:
            return cfg.freeze({"model": self.config["model"]}).model
        except ValueError as error:
            raise ValueError(f"{self.path}/{'config' if self.begun else 'plan'}.json: {error}") from None

    @functools.cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """Logged steps, sound or not."""
        return [line for line in read_lines(self.path / "metrics.jsonl") if "loss" in line]

    @functools.cached_property
    def evals(self) -> list[dict[str, Any]]:
        """Validation losses, sound or not; evaluations of tasks have none."""
        return [line for line in read_lines(self.path / "evals.jsonl") if "loss" in line]

    @functools.cached_property
    def task_evals(self) -> list[dict[str, Any]]:
        """Results of tasks; of the same step, group, task and shots the last counts."""
        lines = read_lines(self.path / "evals.jsonl")
        results = [line for line in lines if {"step", "task", "shots", "scores"} <= line.keys()]
        return list({(x["step"], x.get("group"), x["task"], x["shots"]): x for x in results}.values())

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
        if not self.begun:
            return "has not begun, or failed before its first step; see train.log"
        if fault := self.fault(loss):
            return fault
        records, train = self.records(loss), self.config["train"]
        if curves or (records and records[-1]["tokens"] >= train["tokens"] - train["batch_tokens"]):
            return "" if records else f"has no {loss} loss yet"
        if loss == "validation" and self.metrics:  # the training got further than its last validation
            if reason := self.unusable("training"):
                return reason
            return "has no validation loss of its end"
        if not records:
            return f"has no {loss} loss yet"
        return f"is not finished, {records[-1]['tokens']:,} of {train['tokens']:,} tokens"

    def fault(self, loss: str) -> str:
        """The first number of its records that makes them useless; empty if there is none."""
        last = self.metrics[-1:] if loss == "validation" else []  # where a diverged run says so
        for number, record in enumerate((*self.records(loss), *last), 1):
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


def load(path: epath.PathLike) -> Run:
    """Opens a run directory.

    Raises:
        ValueError: a config.json (or plan.json, where there is no other) that is not that of a run.
    """
    path = epath.Path(path)
    begun = (path / "config.json").exists()
    file = path / ("config.json" if begun else "plan.json")
    try:
        values = parse_json(file.read_text(encoding="utf-8"), str(file))
    except Unreadable:
        raise
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}); the file is damaged") from None
    if not begun:
        values = {"config": values}
    config = values.get("config") if isinstance(values, dict) else None
    if not isinstance(config, dict) or not all(isinstance(config.get(key), dict) for key in ("model", "data", "train")):
        raise ValueError(f"{file} is not that of a run: it has no {'config with ' * begun}model, data and train")
    numbers = {f"train.{key}": config["train"].get(key) for key in ("tokens", "batch_tokens")}
    if "flops_per_token" in values:
        numbers["flops_per_token"] = values["flops_per_token"]
    for key, value in numbers.items():
        if not (is_number(value) and value):
            raise ValueError(f"{file}: {key} is {json.dumps(value)} but must be a positive number")
    return Run(path, values, begun)


def reasons_left_out(runs: Sequence[Run], loss: str, curves: bool = False) -> list[str]:
    """Why each run is not used; empty for those that are. Of copies of a run the first is used."""
    found: list[str] = []
    first: dict[str, epath.Path] = {}
    for run in runs:
        reason = run.unusable(loss, curves)
        if not reason:
            last = run.records(loss)[-1]
            key = json.dumps([run.num_params("total"), last["tokens"], last["loss"], _measured_on(run, loss)])
            if key in first:
                reason = f"is a copy of {first[key]}, with the same parameters, tokens and loss"
            first.setdefault(key, run.path)
        found.append(reason)
    return found


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
        The points; runs without a usable loss and copies of others are named in ``left_out``.

    Raises:
        ValueError: runs whose losses cannot be compared (another tokenizer, data, validation or length of sequences),
            no usable run, or a damaged config.
    """
    if count not in COUNTS:
        raise ValueError(f"--params={count} of run directories must be {', '.join(COUNTS[:-1])} or {COUNTS[-1]}")
    if loss not in ("validation", "training"):
        raise ValueError(f"--loss={loss} of run directories must be validation or training")
    rows: list[tuple[str, float, float, float, float]] = []
    left_out, measured = [], {}
    runs = list(runs)
    for run, reason in zip(runs, reasons_left_out(runs, loss, curves), strict=True):
        if reason:
            left_out.append(f"{run.path}: {reason}")
            continue
        name, size = str(run.path), float(run.num_params(count))
        measured[name] = _measured_on(run, loss)
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


def _measured_on(run: Run, loss: str) -> dict[str, Any]:
    """What two runs must share for their losses to be compared."""
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
