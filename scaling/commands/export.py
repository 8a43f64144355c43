"""The verb ``export``: writes the model of a run as a Hugging Face folder."""

import argparse

from scaling import exit_codes


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what ``export`` reads."""
    parser.add_argument("run_directory", metavar="RUN", help="run directory")
    parser.add_argument("--output", required=True, metavar="DIR", help="new or empty folder to write to")


def run(options: argparse.Namespace) -> int:
    """Writes the folder, and prints where it is."""
    from scaling.interop.huggingface import export

    export(options.run_directory, options.output)
    print(options.output)
    return exit_codes.OK
