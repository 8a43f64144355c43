"""From command to first step: what ``scaling bench startup`` measures."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_LONGEST = 600.0


def startup(config: str, repetitions: int) -> Iterator[str]:
    """Times ``scaling train`` in a process of its own until its first step is logged, then ends it.

    At the first start the caches are empty: text is tokenized and everything is compiled. Later starts use the caches.

    Args:
        config: an experiment file.
        repetitions: number of starts with the caches of the first.

    Yields:
        A line for each start.

    Raises:
        ValueError: the run ends before its first step; its last words.
    """
    with tempfile.TemporaryDirectory() as folder:
        for number in range(repetitions + 1):
            seconds = _first_step(config, Path(folder) / f"run{number}", Path(folder) / "cache")
            kind = "nothing kept" if number == 0 else "tokens and compiled programs kept"
            yield f"start of {config}, {kind}: first step logged after {seconds:.1f} s"


def _first_step(config: str, run: Path, cache: Path) -> float:
    command = [sys.executable, "-m", "scaling", "train", f"--config={config}", f"--config.workdir={run}"]
    start = time.monotonic()
    # Its output goes to a file: a pipe that nobody reads would stop it.
    with (run.parent / f"{run.name}.log").open("w+") as log:
        process = subprocess.Popen(
            command, env=os.environ | {"SCALING_CACHE": str(cache)}, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            while not _has_line(run / "metrics.jsonl"):
                if process.poll() is not None or time.monotonic() - start > _LONGEST:
                    log.seek(0)
                    last = (log.read().strip().splitlines() or ["no output"])[-1]
                    raise ValueError(f"{config} logs no step: {last}")
                time.sleep(0.02)
            return time.monotonic() - start
        finally:
            process.kill()
            process.wait()


def _has_line(path: Path) -> bool:
    return path.exists() and b"\n" in path.read_bytes()
