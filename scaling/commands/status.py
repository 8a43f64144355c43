"""The verb ``status``: shows the progress of launched runs as a table or as JSON."""

import argparse
import contextlib
import sys

from scaling import exit_codes

_PATIENCE = 10.0  # seconds that an object store may fail; who asks for states does not want to wait as a run does


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what ``status`` reads."""
    parser.add_argument(
        "launches", nargs="*", metavar="FOLDER|NAME", help="run, sweep or launch (default: all of runs/)"
    )
    parser.add_argument(
        "--time", action="store_true", help="show where the time went: steps, start-up, saves, lost work"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def run(options: argparse.Namespace) -> int:
    """Prints a line for each run.

    Returns:
        0, even if runs have failed.

    Raises:
        FileNotFoundError: no such launch.
        ValueError: a damaged ``launch.json``.
    """
    from launch import status
    from launch.find import find
    from scaling import object_store
    from scaling.runs.run_directory import read_ahead

    object_store.set_patience(_PATIENCE)
    with read_ahead(options.launches), contextlib.ExitStack() as ahead:
        launches = find(options.launches)
        try:
            ahead.enter_context(read_ahead(run for launch in launches for run in launch.runs.values()))
        except OSError as error:
            print(f"some values are not known: {error}", file=sys.stderr)
        found = [row for launch in launches for row in status.rows(launch)]
    if options.json:
        print(status.to_json(found))
    elif found:
        print(status.time_to_text(found) if options.time else status.to_text(found))
    else:
        print("no runs in runs/")
    return exit_codes.OK
