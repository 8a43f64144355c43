"""Shows a sweep: the plan as a table, a live table on a terminal while it runs, plain lines elsewhere."""

import math
import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from scaling.output import clock
from scaling.sweep.plan import Run
from scaling.sweep.progress import Clock
from scaling.sweep.runner import ELSEWHERE, Job, Runner
from scaling.sweep.states import FAILED, FINISHED, RUNNING, STOPPED, WAITING

_PLAIN_SECONDS = 30.0
_COLOURS = {RUNNING: "cyan", FINISHED: "green", FAILED: "red", STOPPED: "yellow", ELSEWHERE: "yellow"}


def plan_to_text(runs: Sequence[Run], estimates: Clock, slots: int, source: str, finished: frozenset[str]) -> str:
    """Every run with parameters (those of a token in a column of their own if there are experts), tokens, FLOPs, hours.

    Args:
        runs: of the sweep.
        estimates: of the time.
        slots: runs at a time.
        source: how the speed of the estimate is known.
        finished: names of runs that are done.
    """
    width = max(3, *(len(run.name) for run in runs))
    experts = any(run.scale.params.idle for run in runs)
    lines = [
        f"{'run':<{width}} layers d_model     params{'     active' * experts}  no-embed     tokens  tok/param     FLOPs"
        "  peak lr   batch   steps   hours"
    ]
    for run in runs:
        model, train, scale = run.config.model, run.config.train, run.scale
        hours = "   done" if run.name in finished else f"{estimates.seconds(run) / 3600:>7.3g}"
        active = f" {scale.params.active:>10.4g}" * experts
        lines.append(
            f"{run.name:<{width}} {model.num_layers:>6} {model.d_model:>7} {scale.params.total:>10.4g}{active} "
            f"{scale.params.without_embeddings:>9.3g} {train.tokens:>10.4g} "
            f"{train.tokens / scale.params.active:>10.3g} {scale.flops:>9.3g} {run.config.optimizer.peak_lr:>8.3g} "
            f"{train.batch_tokens:>7} {run.steps:>7} {hours}"
        )
    left = [estimates.seconds(run) for run in runs if run.name not in finished]
    total = sum(run.scale.flops for run in runs)
    lines += [
        "",
        f"{len(runs)} runs, {total:.3g} FLOPs, {sum(run.config.train.tokens for run in runs):.3g} tokens; "
        f"{len(runs) - len(left)} finished",
        f"estimated {estimates.makespan([], left, slots) / 3600:.3g} hours for the rest, {slots} at a time; {source}",
    ]
    return "\n".join(lines)


class Display:
    """Shows a ``Runner``; call it about twice a second, inside its ``with`` block."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._live = Live(console=self._console, refresh_per_second=2) if sys.stderr.isatty() else None
        self._states: dict[str, str] = {}
        self._last = time.monotonic()

    def __enter__(self) -> "Display":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, runner: Runner) -> None:
        if self._live:
            self._live.update(self._table(runner))
        else:
            self._plain(runner)

    def _table(self, runner: Runner) -> Group:
        room = max(4, self._console.height - 6)
        table = Table(box=None, pad_edge=False)
        for name in ("run", "state", "params", "tokens", "", "loss", "left"):
            table.add_column(name, justify="left" if name in ("run", "state") else "right")
        for job in _shown(runner, room):
            done = job.progress.tokens / job.run.config.train.tokens
            left = runner.clock.seconds(job.run, job.progress.tokens)
            table.add_row(
                job.run.name,
                Text(job.state, style=_COLOURS.get(job.state, "")),
                f"{job.run.scale.params.total:,}",
                f"{job.run.config.train.tokens:,}",
                f"{done:.0%}",
                f"{job.progress.loss:.4f}" if math.isfinite(job.progress.loss) else "",
                clock(left) if job.state in (RUNNING, WAITING, ELSEWHERE) else "",
            )
        return Group(table, Text(_summary(runner)))

    def _plain(self, runner: Runner) -> None:
        for job in runner.jobs:
            before = self._states.get(job.run.name, WAITING)
            if job.state != before and (self._states or job.state != FINISHED):
                loss = f", loss {job.progress.loss:.4f}" if job.state == FINISHED else ""
                why = f": {job.reason}" if job.state == FAILED else ""
                print(f"{job.run.name} {job.state}{loss}{why}  ({_summary(runner)})", file=sys.stderr, flush=True)
                self._last = time.monotonic()
        self._states = {job.run.name: job.state for job in runner.jobs}
        if time.monotonic() - self._last > _PLAIN_SECONDS:
            self._last = time.monotonic()
            now = ", ".join(
                f"{job.run.name} {job.progress.tokens / job.run.config.train.tokens:.0%}" for job in runner.of(RUNNING)
            )
            print(f"{_summary(runner)}: {now}", file=sys.stderr, flush=True)


def outcome(runner: Runner) -> str:
    """What is finished, and each run that failed with the reason and its log."""
    lines = [f"{len(runner.of(FINISHED))} of {len(runner.jobs)} runs finished"]
    for job in runner.of(FAILED):
        lines.append(f"failed: {job.run.name}: {job.reason}  (exit code {job.exit_code}, log {job.log})")
    if stopped := runner.of(STOPPED):
        lines.append(f"stopped: {', '.join(job.run.name for job in stopped)}")
    if elsewhere := runner.of(ELSEWHERE):
        lines.append(f"still trained by another process: {', '.join(job.run.name for job in elsewhere)}")
    if runner.of(FAILED, STOPPED, WAITING, ELSEWHERE):
        lines.append("the same command goes on with what is not finished")
    return "\n".join(lines)


def _summary(runner: Runner) -> str:
    states = (FINISHED, RUNNING, ELSEWHERE, WAITING, STOPPED, FAILED)
    counts = [f"{len(jobs)} {state}" for state in states if (jobs := runner.of(state))]
    return f"{', '.join(counts)}, left about {clock(runner.seconds_left())}"


def _shown(runner: Runner, room: int) -> list[Job]:
    """The jobs that fit on the terminal: first those that run or failed, then the newest finished, then the next."""
    chosen = runner.of(RUNNING, FAILED, STOPPED, ELSEWHERE)[:room]
    finished, waiting = runner.of(FINISHED), runner.of(WAITING)
    rest = room - len(chosen)
    chosen += waiting[: max(rest // 2, rest - len(finished))]
    chosen += finished[len(finished) - max(0, room - len(chosen)) :] if room > len(chosen) else []
    return [job for job in runner.jobs if job in chosen]
