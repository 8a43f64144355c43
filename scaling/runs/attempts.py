"""The time of a run by kind, from ``RUN/attempts/NNN.json``: goodput, lost steps, stalls of saves. No JAX.

An attempt is one ``scaling train`` in a run directory that reached its first step; ``train/reliability/goodput`` writes
its file. Goodput is the share of wall time since the first start that was spent in training steps of the run. Steps
that a later attempt repeated are lost, and the time between attempts is part of the wall time.
"""

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from typing import Any

from etils import epath

FOLDER = "attempts"
STEPS = "steps"
# Seconds of an attempt by kind; they add up to its wall time. "compile" is the first call of the train step, "steps"
# holds waiting for data too, "skipped" are steps that were computed and thrown away (bad losses, rolled back).
KINDS = ("startup", "restore", "compile", STEPS, "validate", "save", "skipped")
# Of a run over all attempts: also steps done again later, and the time between attempts.
RUN_KINDS = (*KINDS, "lost", "down")


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One ``scaling train`` in a run directory.

    Attributes:
        number: from 1.
        hostname: of its first process.
        pid: of its first process.
        started: Unix time.
        first_step: steps that were done before it.
        step: the last step it is known to have done (each logged one is), ``first_step`` before that.
        seconds: by kind (``KINDS``), up to the last time the file was written.
        save_stalls: how long the loop waited for each periodic save, seconds, oldest first.
        step_seconds: median time of a step between logged lines; None before there are two.
        ended: Unix time; None while it runs, or when it was killed.
        exit_code: of ``scaling.exit_codes``; None as above.
    """

    number: int
    hostname: str
    pid: int
    started: float
    first_step: int
    step: int
    seconds: dict[str, float]
    save_stalls: tuple[float, ...] = ()
    step_seconds: float | None = None
    ended: float | None = None
    exit_code: int | None = None

    @property
    def last_seen(self) -> float:
        """Unix time of its end, or of the last event in its file."""
        return self.started + sum(self.seconds.values())


@dataclasses.dataclass(frozen=True)
class Summary:
    """A run over all its attempts.

    Attributes:
        attempts: number of attempts.
        wall_seconds: from the first start to the last event that an attempt wrote.
        seconds: by kind, "lost" (steps done again later) and "down" (from the last that an attempt told of itself to
            the next start); they add up to ``wall_seconds``.
        lost_steps: steps that are known and had to be done again.
        goodput: share of the wall time in steps that count, 0 to 1.
        save_stall: median seconds that a periodic save kept the loop waiting; None without one.
        save_stall_share: the same as a share of the median step; None without one.
    """

    attempts: int
    wall_seconds: float
    seconds: dict[str, float]
    lost_steps: int
    goodput: float
    save_stall: float | None
    save_stall_share: float | None


def read(run_dir: epath.PathLike) -> list[Attempt]:
    """The attempts of a run, oldest first; a file that cannot be read (a machine that lost power) is left out."""
    folder = epath.Path(run_dir) / FOLDER
    if not folder.exists():
        return []
    found = [attempt for path in folder.iterdir() if (attempt := _read(path))]
    return sorted(found, key=lambda attempt: attempt.number)


def _read(path: epath.Path) -> Attempt | None:
    if path.suffix != ".json" or not path.stem.isdigit():
        return None
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        seconds = {kind: float(values["seconds"].get(kind, 0.0)) for kind in KINDS}
        known = {field.name for field in dataclasses.fields(Attempt)}
        stalls = tuple(map(float, values.get("save_stalls", ())))
        kept = {name: value for name, value in values.items() if name in known}
        kept |= {name: int(values[name]) for name in ("number", "first_step", "step")}
        kept["started"] = float(values["started"])
        kept |= {name: float(values[name]) for name in ("step_seconds", "ended") if values.get(name) is not None}
        numbers = *seconds.values(), *stalls, *(kept.get(name) or 0.0 for name in ("started", "step_seconds", "ended"))
        if not all(map(math.isfinite, numbers)):
            return None
        return Attempt(**(kept | {"seconds": seconds, "save_stalls": stalls}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None


def path(run_dir: epath.Path, number: int) -> epath.Path:
    """The file of an attempt."""
    return run_dir / FOLDER / f"{number:03d}.json"


def kept_steps(attempts: Sequence[Attempt]) -> list[int]:
    """For each attempt the number of its steps that no later attempt repeated."""
    kept, resumed = [], float("inf")
    for attempt in reversed(attempts):
        kept.append(max(0, int(min(attempt.step, resumed)) - attempt.first_step))
        resumed = min(resumed, attempt.first_step)
    return kept[::-1]


def summarize(attempts: Sequence[Attempt]) -> Summary | None:
    """Goodput and its parts over all attempts of a run, oldest first; None if there are none."""
    if not attempts:
        return None
    seconds = dict.fromkeys(RUN_KINDS, 0.0)
    lost_steps = 0
    for attempt, kept in zip(attempts, kept_steps(attempts), strict=True):
        for kind, value in attempt.seconds.items():
            seconds[kind] += value
        if (done := attempt.step - attempt.first_step) > 0:
            lost = attempt.seconds[STEPS] * (done - kept) / done
            seconds[STEPS] -= lost
            seconds["lost"] += lost
            lost_steps += done - kept
    counted = sum(seconds.values())
    # A clock that was set back between attempts must not make their time less than what they spent.
    wall = max(counted, max(attempt.last_seen for attempt in attempts) - attempts[0].started)
    seconds["down"] = wall - counted
    stalls = [stall for attempt in attempts for stall in attempt.save_stalls]
    steps = [attempt.step_seconds for attempt in attempts if attempt.step_seconds]
    stall = statistics.median(stalls) if stalls else None
    return Summary(
        attempts=len(attempts),
        wall_seconds=wall,
        seconds=seconds,
        lost_steps=lost_steps,
        goodput=seconds[STEPS] / max(wall, 1e-9),
        save_stall=stall,
        save_stall_share=stall / statistics.median(steps) if stall is not None and steps else None,
    )
