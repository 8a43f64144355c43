"""The verb ``stop``: stops launched runs, which save a checkpoint first."""

import argparse

from scaling import exit_codes


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what ``stop`` reads."""
    add = parser.add_argument
    add("launches", nargs="+", metavar="FOLDER|NAME", help="run, sweep or launch")
    add(
        "--grace_seconds",
        type=float,
        default=60.0,
        metavar="X",
        help="time for saving before runs are killed (default: 60)",
    )
    add("--poll_seconds", type=float, default=5.0, metavar="X", help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> int:
    """Stops launches, one after another.

    Returns:
        0 if nothing runs and no machines are held any more, else 1.

    Raises:
        FileNotFoundError: no such launch.
        ValueError: a launch that another machine started and must stop, or one that its engine refuses to stop.
    """
    from launch.find import find
    from launch.settings import Settings, check_seconds
    from launch.stop import stop

    chosen = Settings(grace_seconds=options.grace_seconds)
    check_seconds("poll_seconds", options.poll_seconds)
    left = []
    for launch in find(options.launches):
        held = stop(launch, chosen, options.poll_seconds)
        left += held
        print(f"{launch.folder}: " + (f"still there: {', '.join(held)}" if held else "nothing runs, nothing is held"))
    return exit_codes.BUG if left else exit_codes.OK
