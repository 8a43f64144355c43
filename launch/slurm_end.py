"""Decides in a job of Slurm what follows the end of a run: ``python -m launch.slurm_end --config=PLAN --code=N``.

Prints ``again SECONDS`` if the run is to be started again in the same job after so long, ``requeue`` if the job is to
go back into the queue, else ``done`` or ``fail``. Counts are kept beside the plan, because the job may go on with other
nodes.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath

from launch import progress
from launch.restarts import DONE, RESTART, Restarts, describe, of_group
from scaling import durable, exit_codes
from scaling.config.files import load
from scaling.runs.paths import LOG

END = "slurm.json"
MARKER = "launch: job"  # begins the line of the log before each start
_TASK_ENDED = re.compile(r"^srun: error: .*tasks? [\d,-]+: Exited with exit code (\d+)", re.MULTILINE)
_TAIL_BYTES = 1 << 20
# Starts in the same job without progress: one of its nodes may be dead, which Slurm notices late (SlurmdTimeout).
_IN_PLACE = 1
AGAIN, REQUEUE = "again", "requeue"


def read(folder: Path) -> dict[str, Any]:
    """``what`` followed the last end, its ``code`` and ``reason``, the ``restarts``; empty if nothing ended so far."""
    try:
        found = json.loads((folder / END).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def explained(code: int, log: Path) -> int:
    """The exit code that explains the end of a start.

    srun ends with the highest code of all tasks. A task that found a mistake in the config ends with a lower one than
    those that then miss it. srun writes the codes of all into the log, in the order of the ends.
    """
    if code == exit_codes.OK:
        return code
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        text = file.read().decode(errors="replace")
    return of_group([int(found) for found in _TASK_ENDED.findall(text.rpartition(MARKER)[2])]) or code


def decide(plan: str, code: int, most: int) -> str:
    """Notes an end and returns what follows.

    Args:
        plan: path of the ``plan.json``.
        code: that of srun.
        most: limit of starts in a row without progress.
    """
    folder = Path(plan).parent
    known = read(folder)
    restarts = Restarts(most, **known.get("restarts", {}))
    restarts.saw(progress.newest_step(epath.Path(load(plan).workdir)))
    code = explained(code, folder / LOG)
    what = restarts.after(code)
    counts = {key: getattr(restarts, key) for key in ("step", "in_vain", "total", "preemptions")}
    reason = describe(code)
    if what not in (DONE, RESTART) and restarts.in_vain:
        reason = f"{reason}, after {restarts.in_vain} more starts without progress"
    answer = what
    if what == RESTART:
        here = code not in exit_codes.STOPPED and restarts.in_vain <= _IN_PLACE
        answer = f"{AGAIN} {restarts.delay:g}" if here else REQUEUE
    # Slurm counts the starts for which the job was in the queue again.
    in_place = known.get("in_place", 0) + answer.startswith(AGAIN)
    values = {"what": what, "code": code, "reason": reason, "restarts": counts, "in_place": in_place}
    durable.replace_text(epath.Path(folder / END), json.dumps(values, indent=2), synced=True)
    return answer


def main(argv: Sequence[str] | None = None) -> int:
    """Prints what follows; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m launch.slurm_end", allow_abbrev=False)
    parser.add_argument("--config", required=True, metavar="PLAN", help="plan.json of the run")
    parser.add_argument("--code", required=True, type=int, metavar="N", help="exit code of srun")
    parser.add_argument("--max_restarts", required=True, type=int, metavar="N", help="starts without progress")
    options = parser.parse_args(argv)
    answer = decide(options.config, options.code, options.max_restarts)
    reason = read(Path(options.config).parent)["reason"]
    print("launch: " + ("finished" if answer == DONE else f"{reason}: {answer}"), file=sys.stderr)
    print(answer)
    return exit_codes.OK


if __name__ == "__main__":
    sys.exit(main())
