"""Shared by all verbs: a parser that raises exceptions, and functions that add a verb to the command line."""

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from scaling.output import Stdout

Run = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises a ValueError for a user's mistake, so that ``scaling.cli.main`` prints it."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see `{self.prog} --help`")


def add_verbs(parser: argparse.ArgumentParser, title: str = "verbs", metavar: str = "VERB", **options: Any) -> Any:
    """Makes the object of a parser to which ``add_verb`` adds verbs."""
    return parser.add_subparsers(title=title, metavar=metavar, parser_class=Parser, **options)


def add_verb(
    verbs: Any, name: str, help: str, run: Run | None = None, takes_config: bool = False, stdout: Stdout = Stdout.RESULT
) -> argparse.ArgumentParser:
    """Adds a verb without its options, and returns its parser.

    Args:
        verbs: from ``add_verbs``.
        name: what the user types.
        help: one sentence without a capital letter and without a full stop.
        run: takes the options and returns an exit code; None if ``set_defaults(run=...)`` is called later.
        takes_config: whether ``--config=FILE`` and ``--config.section.knob=VALUE`` may be given.
        stdout: what the verb prints, which decides what follows if that cannot be written.
    """
    description = f"{help[0].upper()}{help[1:]}."
    if takes_config:
        description += " Takes --config=FILE[:argument] and --config.section.knob=VALUE. FILE may be the name of an"
        description += " experiment that ships, such as gpt3/125m; `scaling config --list` prints them."
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=help, description=description, allow_abbrev=False)
    parser.set_defaults(run=run, takes_config=takes_config, stdout=stdout)
    return parser
