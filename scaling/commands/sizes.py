"""The verb ``sizes``: prints the published sizes as counted here, beside the numbers of the papers."""

import argparse

from scaling import exit_codes


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what ``sizes`` reads."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def run(options: argparse.Namespace) -> int:
    """Prints the tables."""
    from scaling.catalog import size_report

    print(size_report.to_json() if options.json else size_report.to_text(), end="\n" if options.json else "")
    return exit_codes.OK
