"""Where faults are tried: reference runs, processes that are started and watched, and the comparison of two runs."""

import dataclasses
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.programs import environment

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ROOT / "experiments/cpu/smoke.py"
# The smoke run with constant knobs of its schedule, so that a shorter run is the beginning of a longer one.
COMMON = (
    "--config.sample.prompts=()",
    "--config.log.tensorboard=false",
    "--config.log.batch_hash=true",
    "--config.optimizer.decay_tokens=8192",
)
BATCH = 512  # tokens of a step after the ramp
SAME = ("step", "tokens", "loss", "lr", "grad_norm", "batch_hash", "pretraining_loss")
SECONDS = 900  # a process that takes longer is a failure of its own


def steps(count: int, every: int = 8) -> tuple[str, ...]:
    """A run of so many steps, saved at each ``every``-th; the ramp takes four steps more than its tokens would."""
    return (
        f"--config.train.tokens={BATCH * (count - 4)}",
        f"--config.checkpoint.every_steps={every}",
        f"--config.eval.every_steps={every}",
    )


@dataclasses.dataclass
class Row:
    """One line of the table.

    Attributes:
        fault: what was done.
        expected: when it passes.
        cases: how many were tried.
        figures: what was measured.
        failures: what went wrong, a sentence each.
        skipped: why nothing, or less, could be tried here.
        seconds: it took.
    """

    fault: str
    expected: str
    cases: int = 0
    figures: str = ""
    failures: list[str] = dataclasses.field(default_factory=list)
    skipped: str = ""
    seconds: float = 0.0

    def check(self, holds: Any, sentence: str) -> bool:
        """Notes a failure unless something holds; returns whether it does."""
        if not holds:
            self.failures.append(sentence)
        return bool(holds)

    def check_same(self, run_dir: Path, reference: Path, what: str, tolerance: float = 0.0) -> None:
        self.failures.extend(f"{what}: {difference}" for difference in differences(run_dir, reference, tolerance))


class Process:
    """A training whose output goes to a file beside its run directory, so that nobody has to read a pipe."""

    def __init__(self, command: Sequence[str], run_dir: Path, **options: Any):
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        self.run_dir, self.log = run_dir, run_dir.with_name(run_dir.name + ".log")
        self._before = self.log.stat().st_size if self.log.exists() else 0
        self.started = time.monotonic()
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                list(command), cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, **options
            )

    @property
    def output(self) -> str:
        """What this process has printed."""
        return self.log.read_bytes()[self._before :].decode(errors="replace")

    @property
    def last_line(self) -> str:
        """The last line that is not empty; of a mistake, its sentence."""
        return next((line for line in reversed(self.output.splitlines()) if line.strip()), "")

    def wait(self, seconds: float = SECONDS) -> int:
        """Its exit code; a process that does not end is killed, and has none that anybody expects."""
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
            return -1000

    def wait_for(self, happened: Callable[[], Any], seconds: float = SECONDS) -> bool:
        """Whether something happened before the process ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.popen.poll() is None:
            if happened():
                return True
            time.sleep(0.001)
        return False

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()


class Lab:
    """A folder, what has been trained in it, and seeded dice for each fault."""

    def __init__(self, folder: Path, quick: bool = False):
        """Args: where runs go, and whether only a few cases of each fault are tried."""
        self.folder, self.quick = folder, quick
        self.note: Callable[[str], None] = lambda text: None  # is told of each case
        self._references: dict[tuple[str, ...], Path] = {}
        self._count = 0
        self._started: list[Process] = []

    def dice(self, name: str) -> random.Random:
        """Random numbers of a fault, the same each time."""
        return random.Random(name)

    def some(self, full: int, quick: int) -> int:
        """How many cases."""
        return quick if self.quick else full

    def new(self, name: str) -> Path:
        """A run directory that does not exist yet."""
        self._count += 1
        return self.folder / f"{self._count:03d}-{name}" / "run"

    def start(self, run_dir: Path, *overrides: str, killed_at: str = "", injected: str = "", **options: Any) -> Process:
        """Starts ``scaling train``; ``killed_at`` is a point of ``tests.faults.killed``, ``injected`` a fault there."""
        module = ["tests.faults.killed", killed_at] if killed_at else ["scaling"]
        module = ["tests.faults.injected", injected] if injected else module
        command = [sys.executable, "-m", *module, "train", f"--config={SMOKE}", f"--config.workdir={run_dir}"]
        return self.watch(Process([*command, *COMMON, *overrides], run_dir, **options))

    def watch(self, process: Process) -> Process:
        """Kills a process, if it still runs, when the laboratory closes."""
        self._started = [known for known in self._started if known.popen.poll() is None]
        self._started.append(process)
        return process

    def close(self) -> None:
        for process in self._started:
            process.kill()

    def finish(self, run_dir: Path, *overrides: str, **options: Any) -> Process:
        """Runs ``scaling train`` to its end, however it ends."""
        process = self.start(run_dir, *overrides, **options)
        process.wait()
        return process

    def reference(self, *overrides: str, injected: str = "") -> Path:
        """The run directory of an uninterrupted run, trained once; ``injected`` as in ``start``."""
        key = (*overrides, injected)
        if key not in self._references:
            run_dir = self.new("reference")
            process = self.finish(run_dir, *overrides, injected=injected)
            assert process.wait() == 0, process.output
            self._references[key] = run_dir
        return self._references[key]


def lines(run_dir: Path, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The whole lines of a file that may be written just now."""
    path = run_dir / file
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def logged(run_dir: Path) -> int:
    """The last step in metrics.jsonl, 0 without one."""
    found = lines(run_dir)
    return found[-1]["step"] if found else 0


def curve(run_dir: Path, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """What must be the same in each line; of metrics with a group, as ``policy/clipfrac_avg``, all but times."""
    return [
        {key: value for key, value in line.items() if key in SAME or ("/" in key and not key.startswith("time/"))}
        for line in lines(run_dir, file)
    ]


def weights(run_dir: Path) -> dict[str, bytes]:
    """Every number of the newest whole checkpoint: parameters, moments, what lies beside; as bytes by name."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    from scaling.runs.checkpoint import Checkpoints

    checkpoints = Checkpoints(run_dir)
    try:
        found = checkpoints.newest_whole()
        assert found is not None, run_dir
        path = checkpoints.directory / f"{found[0]:09d}"
    finally:
        checkpoints.close()
    names = [name for name in ("params", "optimizer", "beside") if (path / name).exists()]
    items = ocp.args.Composite(**{name: ocp.args.StandardRestore() for name in names})
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as saver:
        trees = dict(saver.restore(path, args=items).items())
    return {jax.tree_util.keystr(k): np.asarray(v).tobytes() for k, v in jax.tree.leaves_with_path(trees)}


def differences(run_dir: Path, reference: Path, tolerance: float = 0.0) -> list[str]:
    """How a finished run differs from its reference: steps, batches, losses, validation, final state.

    With a ``tolerance``, losses and gradient norms may differ by it, relatively, and weights are not compared.
    """
    found = []
    for file in ("metrics.jsonl", "evals.jsonl"):
        ours, theirs = curve(run_dir, file), curve(reference, file)
        if [line["step"] for line in ours] != [line["step"] for line in theirs]:
            found.append(f"{file} has steps {[line['step'] for line in ours]}")
            continue
        for one, other in zip(ours, theirs, strict=True):
            keys = [k for k in other if not (one.get(k) == other[k] or _near(one.get(k), other[k], k, tolerance))]
            if keys:
                found.append(f"{file}, step {other['step']}: {keys[0]} is {one.get(keys[0])}, not {other[keys[0]]}")
                break
    if not tolerance and not found and weights(run_dir) != weights(reference):
        found.append("the final state differs")
    return found


def _near(one: Any, other: Any, key: str, tolerance: float) -> bool:
    return key in ("loss", "grad_norm", "lr") and one is not None and abs(one - other) <= tolerance * abs(other)


def loss_difference(run_dir: Path, reference: Path) -> float:
    """The greatest relative difference of a step's loss."""
    pairs = zip(lines(run_dir), lines(reference), strict=False)
    return max((abs(a["loss"] - b["loss"]) / abs(b["loss"]) for a, b in pairs), default=0.0)


class Witness:
    """Remembers every line that a run ever logged, also those that a resume takes out of the file again."""

    def __init__(self, reference: Path):
        self._expected = {line["step"]: line for line in curve(reference)}
        self.repeated = 0  # steps that were logged more than once
        self._seen: set[int] = set()
        self.wrong: list[str] = []

    def look(self, run_dir: Path, first_step: int) -> None:
        """After an attempt that began behind ``first_step``."""
        for line in curve(run_dir):
            step = line["step"]
            if step <= first_step:
                continue
            self.repeated += step in self._seen
            self._seen.add(step)
            if line != self._expected.get(step):
                self.wrong.append(f"step {step} was once logged as {line}")


def lost_steps(run_dir: Path) -> list[int]:
    """Steps that each attempt logged and a later one had to do again, from the attempts' files."""
    from scaling.runs import attempts

    found = attempts.read(run_dir)
    return [max(0, a.step - b.first_step) for a, b in itertools.pairwise(found)]


def signal_name(code: int) -> str:
    """What an exit code says."""
    return signal.Signals(-code).name if -64 < code < 0 else str(code)


def is_root() -> bool:
    """Whether file systems can be mounted for a test."""
    return os.geteuid() == 0
