"""The progress of runs, from ``launch.json`` and the files of their run directories."""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from launch import jobs, progress, slurm, state
from launch.find import Found
from launch.local import supervised
from scaling import exit_codes
from scaling.config import schema as cfg
from scaling.object_store import is_remote
from scaling.runs import attempts
from scaling.runs.json_lines import last_record
from scaling.runs.lock import is_locked
from scaling.runs.paths import CONFIG, EVALS, METRICS, PLAN
from scaling.sweep.progress import is_end
from scaling.sweep.states import FAILED, FINISHED, RUNNING, STOPPED, WAITING
from scaling.train.schedule import BatchSchedule

_HEADS = ("run", "where", "state", "step", "loss", "tokens/s", "MFU", "checkpoint", "restarts", "goodput")


@dataclasses.dataclass
class Row:
    """The state of a run; None = unknown.

    Attributes:
        run: name.
        where: local, tpu_vm, gke, skypilot or slurm.
        state: waiting, running, finished, failed or stopped; dead = it should run, but its supervisor is gone.
        step: the last that was logged.
        steps: of the whole run.
        loss: nats a token, of that step.
        tokens_per_second: as logged.
        mfu: share of the peak.
        checkpoint: step of the newest.
        restarts: starts after the first.
        preemptions: restarts after a signal from outside or the loss of machines.
        goodput: share of wall time that was spent in steps that count.
        seconds: wall time since the first start by kind (``scaling.runs.attempts``).
        lost_steps: steps that were computed again.
        save_stall: median time that a periodic save keeps the loop waiting, seconds.
        save_stall_share: the same as a share of a step.
        reason: of a failure.
    """

    run: str
    where: str
    state: str
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    checkpoint: int | None = None
    restarts: int | None = None
    preemptions: int | None = None
    goodput: float | None = None
    seconds: dict[str, float] | None = None
    lost_steps: int | None = None
    save_stall: float | None = None
    save_stall_share: float | None = None
    reason: str = ""


def rows(launch: Found) -> list[Row]:
    """A row for each run of a launch. Values that cannot be read, as without access to an object store, stay None."""
    found = []
    if launch.target == "slurm":
        try:
            slurm.refresh(launch.known, launch.folder)
        except ValueError as error:
            print(f"states may be old: {error}", file=sys.stderr)
    for name, run_dir in launch.runs.items():
        job = launch.known.get("jobs", {}).get(name, {})
        plan = jobs.plan_folder(epath.Path(launch.folder), name, str(run_dir))
        row = Row(name, launch.target, WAITING)
        known = job or (state.read(run_dir) if launch.target == "local" and Path(run_dir).exists() else {})
        _from_files(row, run_dir, plan)
        row.state = _cloud(job, launch.known) if job else _local(Path(run_dir), known, row.state)
        counts = known.get("restarts", {})
        row.restarts, row.preemptions = counts.get("total", row.restarts), counts.get("preemptions")
        row.reason = known.get("reason", "")
        found.append(row)
    return found


def to_text(rows: Sequence[Row]) -> str:
    """A table of runs, followed by the reasons of failures, and of waiting where they are known."""
    lines = _table([_HEADS, *(_cells(row) for row in rows)], left=3)
    reasons = [f"{row.run}: {row.reason}" for row in rows if row.reason and row.state in (FAILED, WAITING)]
    return "\n".join([*lines, *([""] if reasons else []), *reasons])


def time_to_text(rows: Sequence[Row]) -> str:
    """A table of the time of each run since its first start: in seconds, and the share of each kind."""
    kinds = sorted(attempts.RUN_KINDS, key=lambda kind: kind != attempts.STEPS)  # steps are the first column
    table: list[tuple[str, ...]] = [("run", "seconds", *kinds, "lost_steps", "save_stall")]
    for row in rows:
        if row.seconds is None:
            table.append((row.run, *["?"] * (len(kinds) + 3)))
            continue
        wall = sum(row.seconds.values())
        shares = (f"{row.seconds[kind] / max(wall, 1e-9):.1%}" for kind in kinds)
        stall = "?" if row.save_stall is None else f"{row.save_stall:.3f} s"
        if row.save_stall_share is not None:
            stall += f", {row.save_stall_share:.0%} of a step"
        table.append((row.run, f"{wall:,.0f}", *shares, str(row.lost_steps), stall))
    return "\n".join(_table(table, left=1))


def to_json(rows: Sequence[Row]) -> str:
    """A JSON list of objects, for programs; NaN, which JSON does not have, becomes null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(part) for name, part in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps([plain(dataclasses.asdict(row)) for row in rows], indent=2)


def _table(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Lines of a table, with the first ``left`` columns aligned left and the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            f"{cell:<{width}}" if i < left else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _cells(row: Row) -> tuple[str, ...]:
    def shown(value: Any, form: Callable[[Any], str]) -> str:
        return "?" if value is None else form(value)

    restarts = shown(row.restarts, str)
    if row.preemptions:
        restarts += f" ({row.preemptions} preempted)"
    return (
        row.run,
        row.where,
        row.state,
        f"{shown(row.step, str)}/{shown(row.steps, str)}",
        shown(row.loss, lambda x: f"{x:.4f}"),
        shown(row.tokens_per_second, lambda x: f"{x:,.0f}"),
        shown(row.mfu, lambda x: f"{x:.1%}"),
        shown(row.checkpoint, str),
        restarts,
        shown(row.goodput, lambda x: f"{x:.1%}"),
    )


def _from_files(row: Row, run_dir: epath.Path, plan: epath.Path) -> None:
    """Fills a row from a run directory. Its ``state`` becomes finished, begun or failed, or stays."""
    tokens = None
    try:
        tokens = _length(row, run_dir, epath.Path(str(plan)))  # a Path made of a remote one has lost its store
        last = _last(run_dir / METRICS)
        if last:
            row.state, row.step, row.loss = "begun", last.get("step"), last.get("loss")
            row.tokens_per_second, row.mfu = last.get("tokens_per_second"), last.get("mfu")
        if (step := progress.newest_checkpoint(run_dir)) >= 0:
            row.checkpoint = step
        validation = _last(run_dir / EVALS)
        if validation and tokens and is_end(validation, tokens):
            row.state = FINISHED
        tries = attempts.read(run_dir)
        if summary := attempts.summarize(tries):
            row.goodput, row.restarts = summary.goodput, summary.attempts - 1
            row.seconds, row.lost_steps = summary.seconds, summary.lost_steps
            row.save_stall, row.save_stall_share = summary.save_stall, summary.save_stall_share
        if row.state == "begun" and is_remote(run_dir) and is_locked(run_dir):
            row.state = RUNNING
        if tries and row.state != FINISHED and tries[-1].exit_code == exit_codes.DIVERGED:
            row.state = FAILED
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError, ImportError):
        return
    except Exception as error:  # libraries of object stores raise many kinds of exceptions
        if not is_remote(run_dir):
            raise
        row.reason = str(error).splitlines()[0] if str(error) else type(error).__name__


def _length(row: Row, run_dir: epath.Path, plan: epath.Path) -> int | None:
    """Tokens of the whole run; also sets ``row.steps``."""
    path = next((p for p in (plan / PLAN, plan / CONFIG, run_dir / CONFIG) if p.exists()), None)
    if path is None:
        return None
    values = json.loads(path.read_text())
    train = cfg.freeze(values.get("config", values)).train
    row.steps = BatchSchedule.from_config(train).num_steps
    return train.tokens


def _last(path: epath.Path) -> dict[str, Any] | None:
    return last_record(path, "loss")


def _local(run_dir: Path, known: dict[str, Any], by_files: str) -> str:
    if run_dir.exists():
        if supervised(epath.Path(run_dir)):
            return "restarting" if known.get("state") == WAITING else RUNNING
        if is_locked(epath.Path(run_dir)):
            return RUNNING
    if by_files == FINISHED:
        return by_files
    now = known.get("state", "")
    if now in (RUNNING, WAITING):
        supervisor = known.get("supervisor")
        return "dead" if not supervisor or state.here(supervisor) else "elsewhere"
    return now or {"begun": STOPPED}.get(by_files, by_files)


def _cloud(job: dict[str, Any], launch: dict[str, Any]) -> str:
    """The state of a job. On TPU VMs a running job is unwatched if its launcher is gone; other engines watch it."""
    launcher = launch.get("launcher")
    watched = launch["target"] != "tpu_vm" or state.alive(launcher) or (launcher and not state.here(launcher))
    return job["state"] if watched or job["state"] != RUNNING else "unwatched"
