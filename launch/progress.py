"""Tells from the files of a run directory how far the run is and whether it makes progress. No JAX."""

import contextlib
import time

from etils import epath

from scaling.runs.json_lines import last_record
from scaling.runs.paths import CHECKPOINTS, EVALS, LOG, METRICS, length_and_time

_WATCHED = (METRICS, EVALS, CHECKPOINTS, "attempts", LOG)


def newest_checkpoint(run_dir: epath.Path) -> int:
    """The highest step with a checkpoint that has a ``meta.json``; -1 if there is none."""
    folder = run_dir / CHECKPOINTS
    if not folder.exists():
        return -1
    steps = [path for path in folder.iterdir() if path.name.isdecimal()]  # with leading zeros
    return max((int(path.name) for path in steps if (path / "meta.json").exists()), default=-1)


def newest_step(run_dir: epath.Path) -> int:
    """The highest step that was logged or saved; -1 if there is none."""
    try:
        last = last_record(run_dir / METRICS, "loss")
    except (ValueError, OSError):  # damaged or being rewritten; the checkpoints are enough
        last = None
    step = last.get("step") if last else None
    return max(newest_checkpoint(run_dir), step if isinstance(step, int) else -1)


class Heartbeat:
    """Watches the files of a run for changes."""

    def __init__(self, run_dir: epath.Path):
        self._run_dir = run_dir
        self._seen: list[tuple[str, int, int]] = []
        self.beat()

    def beat(self) -> None:
        """Restarts the measurement of silence."""
        self._last = time.monotonic()

    def silence(self) -> float:
        """Seconds since a file of the run last changed (or ``beat``)."""
        now = []
        for name in _WATCHED:
            path = self._run_dir / name
            for part in [path, *(path.iterdir() if path.is_dir() else ())]:
                with contextlib.suppress(OSError):  # just renamed or deleted
                    now.append((str(part), *length_and_time(part)))
        if now != self._seen:
            self._seen = now
            self.beat()
        return time.monotonic() - self._last
