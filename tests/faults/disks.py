"""Full disks and read-only folders, by file systems mounted for the purpose (root, also of a user namespace)."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from scaling import exit_codes
from tests.faults.lab import Lab, Process, Row, logged, steps, weights

OVERRIDES = steps(100)
SMALL = "1700k"  # two checkpoints and what lies beside them, but not three
LARGE = "24m"
SECONDS = 20.0  # from the first write that fails to the end of the process


def why_not() -> str:
    """Why nothing can be mounted here; empty if it can."""
    if os.geteuid() != 0:
        return "mounting needs root: `unshare -Urm make faults`"
    done = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, text=True)
    return f"tmpfs cannot be mounted here ({done.stderr.strip()})" if done.returncode else ""


@contextlib.contextmanager
def tmpfs(folder: Path, size: str) -> Iterator[None]:
    """A file system of its own at a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A folder that nobody can write into, root included."""
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Takes all the room there is."""
    path = folder.parent / "filler" if not os.path.ismount(folder) else folder / "filler"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return path


def _ended(row: Row, process: Process, what: str, codes: tuple[int, ...]) -> float:
    """Checks how a training ended that could not write; returns how long it took."""
    start = time.monotonic()
    code = process.wait(60)
    seconds = time.monotonic() - start
    row.check(code in codes, f"{what}: ended with {code}: {process.last_line}")
    errors = [line for line in process.output.splitlines() if line.startswith("scaling train: error: ")]
    row.check(len(errors) == 1 and "Traceback" not in process.output, f"{what}: printed {process.last_line!r}")
    return seconds


def full(lab: Lab) -> Row:
    """No room for another checkpoint; no room for anything, at random steps."""
    row = Row(
        "disk full",
        f"exit code {exit_codes.IO} and one sentence within {SECONDS:.0f} s; the last checkpoint survives; room again "
        "after pruning; then bit-identical",
    )
    if reason := why_not():
        row.skipped = reason
        return row
    reference, slowest = lab.reference(*OVERRIDES), 0.0
    run_dir = lab.new("small")
    with tmpfs(run_dir, SMALL):
        for attempt in range(2):  # the second time there is still no room
            lab.note(f"no room for a third checkpoint, attempt {attempt + 1}")
            process = lab.start(run_dir, *OVERRIDES)
            row.check(process.wait() == exit_codes.IO, f"small disk: ended with {process.wait()}: {process.last_line}")
            row.check("the last good one is step" in process.output, f"small disk: {process.last_line}")
            row.check(len(_whole(run_dir)) == 2, f"small disk: {_whole(run_dir)} survived")
            row.cases += 1
        process = lab.finish(run_dir, *OVERRIDES, "--config.checkpoint.keep_last=1")
        row.check(process.wait() == 0, f"small disk, keeping one: {process.last_line}")
        row.check_same(run_dir, reference, "small disk")
        row.cases += 1
    dice = lab.dice("full")
    for number in range(lab.some(6, 1)):
        run_dir, board = lab.new("filled"), number % 2 == 1  # its events are written by a thread of their own
        lab.note(f"filled at a random step, {number + 1}")
        with tmpfs(run_dir, LARGE):
            given = (*OVERRIDES, f"--config.log.tensorboard={board}")
            process, step = lab.start(run_dir, *given), dice.randrange(10, 80)
            process.wait_for(lambda run_dir=run_dir, step=step: logged(run_dir) >= step)
            filler = fill(run_dir)
            slowest = max(slowest, _ended(row, process, f"full at step {step}", (exit_codes.IO,)))
            row.check(_whole(run_dir) or step < 20, f"full at step {step}: no checkpoint survived")
            filler.unlink()
            process = lab.finish(run_dir, *given)
            row.check(process.wait() == 0, f"room again after step {step}: {process.last_line}")
            row.check_same(run_dir, reference, f"full at step {step}")
        row.cases += 1
    row.check(slowest <= SECONDS, f"took {slowest:.1f} s to end")
    row.figures = f"at worst {slowest:.1f} s to end"
    return row


def readonly(lab: Lab) -> Row:
    """The folder of the checkpoints becomes read-only while training; the run directory is so from the start."""
    row = Row("read-only folder", f"exit code {exit_codes.IO} or {exit_codes.USAGE}, one sentence; then bit-identical")
    if reason := why_not():
        row.skipped = reason
        return row
    reference, run_dir = lab.reference(*OVERRIDES), lab.new("readonly")
    process = lab.start(run_dir, *OVERRIDES)
    lab.note("checkpoints become read-only")
    process.wait_for(lambda: _whole(run_dir))
    with read_only(run_dir / "checkpoints"):
        seconds = _ended(row, process, "read-only checkpoints", (exit_codes.IO,))
        before = weights(run_dir)
        lab.note("run directory is read-only")
    with read_only(run_dir):
        _ended(row, lab.start(run_dir, *OVERRIDES), "read-only run directory", (exit_codes.USAGE,))
        row.check(weights(run_dir) == before, "the last checkpoint has changed")
    process = lab.finish(run_dir, *OVERRIDES)
    row.check(process.wait() == 0, f"writable again: {process.last_line}")
    row.check_same(run_dir, reference, "read-only")
    row.cases, row.figures = 2, f"{seconds:.1f} s to end"
    return row


def _whole(run_dir: Path) -> list[int]:
    """Steps that have all their marks."""
    found = (run_dir / "checkpoints").glob("*/checksums-00000.json")
    return sorted(int(path.parent.name) for path in found if path.parent.name.isdigit())
