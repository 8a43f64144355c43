"""A sweep that is killed, with one run that cannot succeed."""

import os
import signal
import sys
from pathlib import Path

from scaling import exit_codes
from scaling.runs import attempts
from tests.experiments import SHAPES, experiment
from tests.faults.lab import Lab, Process, Row, differences, logged


def _start(lab: Lab, folder: Path, rates: tuple[float, ...]) -> Process:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "small.py"
    knobs = {"train__batch_tokens": 512, "optimizer__clip_norm": 0.0, "checkpoint__every_steps": 20}
    runs = f"{SHAPES}, [tokens(8192, 65536)], grid={{'optimizer.peak_lr': {rates}}}"
    file.write_text(experiment(folder / "runs", runs, log__batch_hash=True, **knobs))
    command = [sys.executable, "-m", "scaling", "sweep", f"--config={file}", "--parallel=1"]
    return lab.watch(Process(command, folder / "run"))


def _runs(folder: Path) -> list[Path]:
    return sorted(path.parent for path in (folder / "runs").glob("*/plan.json"))


def _finished(run_dir: Path) -> bool:
    found = attempts.read(run_dir)
    return bool(found) and found[-1].exit_code == 0


def _kill_children(folder: Path) -> None:
    """The runs of the sweep are sessions of their own: a machine that goes takes them too."""
    for run_dir in _runs(folder):
        found = attempts.read(run_dir)
        if found and found[-1].ended is None:
            try:
                os.kill(found[-1].pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def killed(lab: Lab) -> Row:
    """Killed in its third run, with and without the run's process; then the same command."""
    row = Row(
        "sweep killed",
        "finished runs stay, unfinished ones resume bit-identical, the diverging one is reported",
    )
    rates = (1e-3,)
    reference = lab.new("sweep").parent
    row.check(_start(lab, reference, rates).wait() == 0, "the uninterrupted sweep failed")
    kinds = {"with its runs": True, "alone": False}
    for name in list(kinds)[: lab.some(2, 1)]:
        lab.note(f"killed {name}")
        folder = lab.new("sweep").parent
        process = _start(lab, folder, rates)
        process.wait_for(lambda folder=folder: len(_runs(folder)) >= 3 and logged(_running(folder)) > 25)
        done = {run_dir.name: _stamp(run_dir) for run_dir in _runs(folder) if _finished(run_dir)}
        process.kill()
        if kinds[name]:
            _kill_children(folder)
        again = _start(lab, folder, rates)
        row.check(again.wait() == 0 and "4 of 4 runs finished" in again.output, f"{name}: {again.last_line}")
        row.check(
            done and all(_stamp(folder / "runs" / run) == done[run] for run in done), f"{name}: a finished run changed"
        )
        for run_dir, other in zip(_runs(folder), _runs(reference), strict=True):
            row.failures.extend(f"{name}: {run_dir.name}: {text}" for text in differences(run_dir, other))
        starts = [len(attempts.read(run_dir)) for run_dir in _runs(folder)]
        row.check(sum(starts) == 4 + kinds[name], f"{name}: {starts} attempts")
        row.cases += 1
    if not lab.quick:
        lab.note("a run that diverges")
        folder = lab.new("sweep").parent
        process = _start(lab, folder, (1e-3, 1e30))
        process.wait()
        row.check(process.wait() == exit_codes.DIVERGED, f"diverging: ended with {process.wait()}: {process.last_line}")
        row.check("4 of 8 runs finished" in process.output, f"diverging: {process.last_line}")
        row.check(process.output.count("\nfailed: ") == 4, "diverging: not all four are reported")
        row.cases += 1
    row.figures = f"{len(done)} finished runs untouched"
    return row


def _running(folder: Path) -> Path:
    return max(_runs(folder), key=lambda path: (path / "plan.json").stat().st_mtime_ns)


def _stamp(run_dir: Path) -> dict[str, int]:
    """When each file of a run was last written."""
    return {str(path): path.stat().st_mtime_ns for path in sorted(run_dir.rglob("*")) if path.is_file()}
