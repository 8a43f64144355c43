"""The verb ``plot``: draws the curves of a run directory."""

import argparse

from scaling import exit_codes


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what ``plot`` reads."""
    parser.add_argument("directory", metavar="RUN", help="run directory")


def run(options: argparse.Namespace) -> int:
    """Draws the curves and prints the path of the picture."""
    from scaling.report.curves import plot

    print(plot(options.directory))
    return exit_codes.OK
