"""Settings of the supervision of runs, which supervisors and launchers share, and their options."""

import argparse
import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the supervision of a run.

    Attributes:
        processes: number of processes on this machine, which JAX joins.
        max_restarts: limit of starts in a row without progress.
        stall_seconds: a run whose files do not change for so long is killed; 0 = never.
        grace_seconds: time between asking a run to end and killing it.
        first_delay: seconds before a start without progress; each further one waits twice as long.
    """

    processes: int = 1
    max_restarts: int = 5
    stall_seconds: float = 1800.0
    grace_seconds: float = 60.0
    first_delay: float = 1.0

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ValueError(f"--processes={self.processes} must be at least 1")
        for name in ("max_restarts", "stall_seconds", "grace_seconds", "first_delay"):
            if not 0 <= getattr(self, name) < math.inf:  # false for NaN, too
                raise ValueError(f"--{name}={getattr(self, name)} must be a number of at least 0")

    def arguments(self) -> list[str]:
        """The settings as options of ``launch.supervisor``."""
        return [f"--{field.name}={getattr(self, field.name)}" for field in dataclasses.fields(self)]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares an option for each of the ``Settings``."""
    usual = Settings()
    add = parser.add_argument
    add("--processes", type=int, default=usual.processes, metavar="N", help="local: processes of each run (default: 1)")
    add(
        "--max_restarts",
        type=int,
        default=usual.max_restarts,
        metavar="N",
        help="a run has failed after N starts in a row without a newer step or checkpoint (default: 5)",
    )
    add(
        "--stall_seconds",
        type=float,
        default=usual.stall_seconds,
        metavar="X",
        help="a run is killed and started again if none of its files change for so long (default: 1800; 0 = never)",
    )
    add(
        "--grace_seconds",
        type=float,
        default=usual.grace_seconds,
        metavar="X",
        help="time between asking a run to end and killing it (default: 60)",
    )
    add("--first_delay", type=float, default=usual.first_delay, metavar="X", help=argparse.SUPPRESS)


def check_seconds(name: str, value: float) -> None:
    """Refuses the value of an option that is not a number of seconds above 0.

    Raises:
        ValueError: it is not such a number.
    """
    if not 0 < value < math.inf:  # false for NaN, too
        raise ValueError(f"--{name}={value:g} must be a number above 0")


def settings(options: argparse.Namespace) -> Settings:
    """The ``Settings`` among parsed options."""
    return Settings(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Settings)})
