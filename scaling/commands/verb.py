"""What all verbs share: a parser whose mistakes are exceptions, and how a verb is added to the command line."""

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from scaling.output import Stdout

Run = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """An argparse parser whose mistakes are exceptions, so that ``scaling.cli.main`` words all of them alike."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see `{self.prog} --help`")


def add_verbs(parser: argparse.ArgumentParser, title: str = "verbs", metavar: str = "VERB", **options: Any) -> Any:
    """The place of a parser to which ``add_verb`` adds verbs."""
    return parser.add_subparsers(title=title, metavar=metavar, parser_class=Parser, **options)


def add_verb(
    verbs: Any, name: str, help: str, run: Run | None = None, takes_config: bool = False, stdout: Stdout = Stdout.RESULT
) -> argparse.ArgumentParser:
    """Adds a verb, without its options.

    Args:
        verbs: from ``add_verbs``.
        name: what the user types.
        help: one sentence without a capital and a full stop.
        run: gets the options and returns an exit code; None where ``set_defaults(run=...)`` follows.
        takes_config: whether ``--config=FILE`` and ``--config.section.knob=VALUE`` may be given.
        stdout: what its standard output is to it.
    """
    description = f"{help[0].upper()}{help[1:]}."
    if takes_config:
        description += " Takes --config=FILE[:argument] and --config.section.knob=VALUE. FILE may be the name of an"
        description += " experiment that ships, such as gpt3/125m; `scaling config --list` prints them."
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=help, description=description, allow_abbrev=False)
    parser.set_defaults(run=run, takes_config=takes_config, stdout=stdout)
    return parser
