"""A run of two processes under ``launch.supervisor``: one killed, frozen, or the one that coordinates killed."""

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from scaling.config import schema as cfg
from scaling.config.files import load
from scaling.config.resolve import resolve
from scaling.runs import attempts
from tests.faults.lab import COMMON, SMOKE, Lab, Process, Row, logged, steps

EVERY = 10
OVERRIDES = (*steps(200, EVERY), "--config.mesh.cpu_devices=1", "--config.mesh.fsdp=2")
NOTICED = {"killed": 15.0, "coordinator killed": 15.0, "frozen": 60.0}  # seconds until it is started again


def _start(lab: Lab, run_dir: Path, overrides: Sequence[str] = ()) -> Process:
    run_dir.mkdir(parents=True, exist_ok=True)
    plan = run_dir / "plan.json"
    given = [*COMMON, *OVERRIDES, *overrides, f"--config.workdir={run_dir}"]
    plan.write_text(cfg.to_json(resolve(load(str(SMOKE), given), device_count=2)))
    command = [sys.executable, "-m", "launch.supervisor", f"--config={plan}", "--processes=2", "--grace_seconds=5"]
    return lab.watch(Process(command, run_dir))


def lost_process(lab: Lab) -> Row:
    """Each fault in a run of its own, in the middle of it."""
    row = Row(
        "two processes, one killed or frozen, coordinator killed",
        "started again within " + ", ".join(f"{s:.0f} s ({name})" for name, s in NOTICED.items()) + "; bit-identical",
    )
    reference, seconds = lab.new("two"), {}
    process = _start(lab, reference)
    row.check(process.wait() == 0, f"uninterrupted: {process.last_line}")
    faults = {"killed": (1, signal.SIGKILL), "coordinator killed": (0, signal.SIGKILL), "frozen": (1, signal.SIGSTOP)}
    for name in list(faults)[: lab.some(3, 1)]:
        lab.note(name)
        number, fault = faults[name]
        run_dir = lab.new("two")
        process, step = _start(lab, run_dir), lab.dice(name).randrange(25, 120)
        row.check(process.wait_for(lambda run_dir=run_dir, step=step: logged(run_dir) >= step), f"{name}: no step")
        pid = json.loads((run_dir / "launch.json").read_text())["children"][number]["pid"]
        start = time.monotonic()
        os.kill(pid, fault)
        process.wait_for(lambda process=process: "starting again" in process.output)
        seconds[name] = time.monotonic() - start
        row.check(process.wait() == 0, f"{name}: ended with {process.wait()}: {process.last_line}")
        row.check(seconds[name] <= NOTICED[name], f"{name}: noticed after {seconds[name]:.1f} s")
        row.check(len(attempts.read(run_dir)) == 2, f"{name}: {len(attempts.read(run_dir))} attempts")
        row.check_same(run_dir, reference, name)
        row.cases += 1
    row.figures = "; ".join(f"{name} {s:.1f} s" for name, s in seconds.items())
    return row
