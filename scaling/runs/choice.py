"""Which checkpoints of a run are best by what its validations said (``config.checkpoint.choose``). No JAX.

The choice is a function of ``evals.jsonl`` and of the checkpoints that exist. A resumed run makes both again, so it
chooses as a run does that was never stopped.
"""

import math
from collections.abc import Iterable

from etils import epath

from scaling.runs.json_lines import read_lines
from scaling.runs.paths import EVALS

LESS_IS_BETTER = {"loss": True, "reward": False}  # figures of a line of evals.jsonl


def figures(run_dir: epath.Path, by: str) -> dict[int, float]:
    """What the validation of each step said, by step, where it is a finite number.

    Args:
        run_dir: directory of the run.
        by: of ``LESS_IS_BETTER``.

    Raises:
        ValueError: ``evals.jsonl`` is damaged.
    """
    lines = [line for line in read_lines(run_dir / EVALS) if "task" not in line and {"step", by} <= line.keys()]
    return {line["step"]: line[by] for line in lines if isinstance(line[by], float) and math.isfinite(line[by])}


def ranked(run_dir: epath.Path, by: str, steps: Iterable[int]) -> list[int]:
    """Those of some steps that have a figure, the best first; of equal ones the earlier. Arguments as of ``figures``.

    Raises:
        ValueError: as ``figures``.
    """
    found = figures(run_dir, by)
    sign = 1 if LESS_IS_BETTER[by] else -1
    return sorted((step for step in steps if step in found), key=lambda step: (sign * found[step], step))


def sentence(run_dir: epath.Path, by: str, step: int) -> str:
    """What is said of the checkpoint that is chosen; arguments as of ``figures``."""
    found = figures(run_dir, by)
    if step not in found:
        return f"no checkpoint has a validation {by}, so the newest is used, step {step}"
    return (
        f"the checkpoint of step {step} is chosen by config.checkpoint.choose: its validation {by} is {found[step]:.4f}"
    )
