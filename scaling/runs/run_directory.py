"""Reads run directories: ``config.json``, ``metrics.jsonl`` and ``evals.jsonl``, and nothing else. No JAX.

A run that a sweep started and that wrote no ``config.json`` has a ``plan.json``.
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from scaling import json_text, object_store
from scaling.catalog.sizes import parameters
from scaling.config import schema as cfg
from scaling.runs.json_lines import is_number, read_lines
from scaling.runs.own_files import is_own
from scaling.runs.paths import CONFIG, EVALS, METRICS, PLAN, is_run

# The small files that readers of runs read.
_READ = r"(^|/)((config|plan|launch)\.json|(metrics|evals)\.jsonl|attempts/\d+\.json|\.lock)$"


def find_runs(paths: Sequence[epath.PathLike]) -> list[epath.Path]:
    """Run directories among ``paths`` and directly inside them, in order of name, each once.

    If several paths are given (``runs/demo/*``), those that the program writes beside runs are skipped: a report,
    launch.json, fits, logs.

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
        if is_run(path):
            found.append(path)
            continue
        inside = sorted(p for p in path.iterdir() if is_run(p)) if path.is_dir() else []
        if not inside and path.suffix in (".csv", ".jsonl") and len(every) > 1:
            raise ValueError(f"{path} is not a run directory; a table is read where it is the only path")
        if not inside:
            raise ValueError(
                f"{path} is not a run directory (no config.json) and holds none; folders in it are not searched"
            )
        found += inside
    return list(dict.fromkeys(found))


def read_ahead(paths: Iterable[epath.PathLike]) -> contextlib.AbstractContextManager[None]:
    """Inside of the block, readers find what runs or folders of runs in object stores were at its beginning.

    Raises:
        OSError: a store does not answer, or refuses.
    """
    return object_store.snapshot(paths, _READ)


@dataclasses.dataclass(frozen=True)
class RunDirectory:
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
        """Records of logged steps, also those that are not sound."""
        return [line for line in read_lines(self.path / METRICS) if "loss" in line]

    @functools.cached_property
    def evals(self) -> list[dict[str, Any]]:
        """Records of validation losses, also those that are not sound; evaluations of tasks have no loss."""
        return [line for line in read_lines(self.path / EVALS) if "loss" in line]

    @functools.cached_property
    def task_evals(self) -> list[dict[str, Any]]:
        """Results of tasks; of the same step, group, task and shots the last counts."""
        lines = read_lines(self.path / EVALS)
        results = [line for line in lines if {"step", "task", "shots", "scores"} <= line.keys()]
        return list({(x["step"], x.get("group"), x["task"], x["shots"]): x for x in results}.values())

    @property
    def learns_from_rewards(self) -> bool:
        """Whether it logged scores of answers; its loss is then none of texts."""
        return any("objective/scores" in record for record in self.metrics)

    def records(self, loss: str) -> list[dict[str, Any]]:
        """Records of the validation or the training loss."""
        return self.evals if loss == "validation" else self.metrics

    def num_params(self, count: str) -> int:
        """N by a convention of ``scaling.catalog.sizes.Parameters``."""
        return getattr(parameters(self.model), count)

    @property
    def flops_per_token(self) -> float:
        """Training FLOPs a token as the run counted them, forward and backward."""
        return self.values.get("flops_per_token", 6 * self.num_params("active"))


def load(path: epath.PathLike) -> RunDirectory:
    """Opens a run directory.

    Raises:
        ValueError: a config.json (or plan.json, where there is no other) that is not that of a run.
    """
    path = epath.Path(path)
    begun = (path / CONFIG).exists()
    file = path / (CONFIG if begun else PLAN)
    try:
        values = json_text.read(file.read_text(encoding="utf-8"), str(file))
    except json_text.Unreadable:
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
    return RunDirectory(path, values, begun)
