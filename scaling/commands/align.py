"""The verb ``align``: what comes after pre-training. Each verb of it trains as ``train`` does, with another recipe."""

import argparse
import time
from typing import TYPE_CHECKING

from scaling.commands.verb import Run, add_verb, add_verbs
from scaling.output import Stdout

if TYPE_CHECKING:
    from scaling.train.recipe import Recipe


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the kinds of training."""
    kinds = add_verbs(parser, title="kinds of training", metavar="WHAT", required=True)

    def add(name: str, run: Run, help: str) -> None:
        add_verb(kinds, name, help, run, takes_config=True, stdout=Stdout.LOG)

    add("sft", _sft, "fine-tune the model of config.start on dialogues")
    add("reward", _reward, "train a reward model on comparisons of completions")


def _reward(options: argparse.Namespace) -> int:
    from scaling.align.reward import RECIPE

    return _train(options, RECIPE)


def _sft(options: argparse.Namespace) -> int:
    from scaling.align.supervised import RECIPE

    return _train(options, RECIPE)


def _train(options: argparse.Namespace, recipe: "Recipe") -> int:
    """Trains by a recipe, or resumes its run.

    Raises:
        ValueError: no config, one that cannot work, or one without a start.
    """
    started = time.time()
    from scaling.commands.training import train
    from scaling.config.files import load, run_name

    if options.config is None:
        raise ValueError("needs --config=FILE, your own experiment or one that ships, such as instructgpt/sft")
    config = load(options.config, options.overrides)
    if not config.start:
        raise ValueError("needs --config.start=RUN, the run directory of the model that is to be aligned")
    return train(config, run_name(options.config), started, recipe)
