"""Reads the runs of a sweep's file."""

import traceback
from collections.abc import Sequence
from pathlib import Path

from scaling.config.files import call, mistake, run_name
from scaling.config.refusal import kind
from scaling.config.shipped import located
from scaling.sweep.plan import Run, Sweep, plan


def runs_of(spec: str, overrides: Sequence[str], local: bool = True) -> list[Run]:
    """The runs of a sweep's file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it describes no sweep, or an impossible one.
    """
    sweep = call(spec, "get_sweep")
    if not isinstance(sweep, Sweep):
        raise ValueError(f"{spec}: get_sweep() must return a scaling.sweep.plan.Sweep, not {kind(sweep)}")
    try:
        return plan(sweep, overrides, run_name(spec), local)
    except (ValueError, OSError):
        raise
    except Exception as error:
        path = located(spec.partition(":")[0])
        here = (path, str(Path(path).absolute()))
        if not any(frame.filename in here for frame in traceback.extract_tb(error.__traceback__)):
            raise  # a bug of ours
        raise mistake(path, error) from error  # its rules and budgets are called here
