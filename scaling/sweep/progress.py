"""The progress of the runs of a sweep, from their run directories, and the time that the rest will take."""

import dataclasses
import heapq
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from scaling.config import schema as cfg
from scaling.config.refusal import shown
from scaling.runs.json_lines import last_record
from scaling.runs.paths import CONFIG, EVALS, METRICS, PLAN
from scaling.sweep.plan import Run

_STARTUP_SECONDS = 15.0  # imports and compilation
# Sections whose knobs change the result of a run, and knobs in them that do not.
_DECISIVE = ("config.model.", "config.optimizer.", "config.train.", "config.seed", "config.data.", "config.eval.tokens")
_FREE = (
    "config.compute.remat",
    "config.train.microbatch_sequences",
    "config.compute.loss_chunk",
    "config.data.cache_dir",
    "config.data.workers",
    "config.data.prefetch",
)


@dataclasses.dataclass
class Progress:
    """The progress of a run.

    Attributes:
        tokens: trained on, by the last logged step.
        loss: the last validation loss, or the last training loss if there is none, nats a token.
        flops_per_second: of the last logged window.
        finished: whether its last validation is the one at the end.
    """

    tokens: float = 0
    loss: float = math.nan
    flops_per_second: float = math.nan
    finished: bool = False


def progress(run: Run) -> Progress:
    """Reads the ends of ``metrics.jsonl`` and ``evals.jsonl`` of a run that may not have begun."""
    folder = epath.Path(run.config.workdir)
    found = Progress()
    if last := last_record(folder / METRICS, "loss"):
        rate = last.get("tokens_per_second", math.nan)  # a diverged run's last line has none
        found = Progress(last["tokens"], last["loss"], rate * run.scale.flops_per_token)
    if validation := last_record(folder / EVALS, "loss"):  # results of tasks have none
        found.loss = validation["loss"]
        found.finished = is_end(validation, run.config.train.tokens)
    return found


def is_end(validation: Mapping[str, Any], tokens: int) -> bool:
    """Whether a validation was made at the end of a run of so many tokens."""
    return validation["tokens"] >= tokens and math.isfinite(validation["loss"])


def changed_knobs(run: Run) -> list[str]:
    """Knobs that change the result and differ from those of the existing run directory; empty if there are none.

    Returns:
        Sentences "knob is x there and y here".

    Raises:
        ValueError: the ``plan.json`` (or ``config.json``) there is damaged.
    """
    folder = epath.Path(run.config.workdir)
    path = next((p for p in (folder / PLAN, folder / CONFIG) if p.exists()), None)
    if path is None:
        return []
    try:
        values = json.loads(path.read_text())
        found = cfg.freeze(values.get("config", values))
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete the run's folder to train it anew") from None
    before = {name: value for name, value, _, _ in cfg.knobs(found)}
    now = {name: value for name, value, _, _ in cfg.knobs(run.config)}
    names = [n for n in now if n.startswith(_DECISIVE) and not n.startswith(_FREE) and before[n] != now[n]]
    return [f"{name} is {shown(before[name])} there and {shown(now[name])} here" for name in names]


class Clock:
    """Estimates seconds from the measured FLOP/s of the run nearest in size, or from a fraction of the peak."""

    def __init__(self, slot_flops: float, utilisation: float):
        """Args: peak FLOP/s of the devices of one run, and the fraction of it assumed before a measurement."""
        self._assumed = slot_flops * utilisation
        self._measured: dict[float, float] = {}  # log FLOPs a token -> FLOP/s

    def learn(self, run: Run, found: Progress) -> None:
        if math.isfinite(found.flops_per_second) and found.flops_per_second > 0:
            self._measured[math.log(run.scale.flops_per_token)] = found.flops_per_second

    @property
    def measured(self) -> int:
        """Number of sizes whose speed was measured."""
        return len(self._measured)

    def seconds(self, run: Run, tokens: float = 0) -> float:
        """Time from ``tokens`` to the end of the run."""
        rate = self._assumed
        if self._measured:
            sizes = np.array(list(self._measured))
            nearest = sizes[np.argmin(np.abs(sizes - math.log(run.scale.flops_per_token)))]
            rate = self._measured[float(nearest)]
        startup = 0.0 if tokens else _STARTUP_SECONDS
        return startup + max(0.0, run.config.train.tokens - tokens) * run.scale.flops_per_token / rate

    def makespan(self, running: Sequence[float], waiting: Sequence[float], slots: int) -> float:
        """Seconds until all runs are done: those that run, and those that wait in this order, over slots."""
        ends = list(running) + [0.0] * max(0, slots - len(running))
        heapq.heapify(ends)
        last = max(ends)
        for seconds in waiting:
            end = heapq.heappop(ends) + seconds
            heapq.heappush(ends, end)
            last = max(last, end)
        return last


def refuse_changed(runs: Sequence[Run]) -> None:
    """Refuses runs whose directories were made with other knobs that change the result."""
    for run in runs:
        if changed := changed_knobs(run):
            raise ValueError(
                f"{run.config.workdir} was made by another sweep: {changed[0]}; "
                "use another config.workdir, or delete it"
            )
