"""The verb ``distill``: trains a student that imitates a teacher."""

import argparse
import time


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares nothing, because everything is in the config."""


def run(options: argparse.Namespace) -> int:
    """Trains the student of ``--config``, or resumes its run.

    Raises:
        ValueError: no config, or one that cannot work.
    """
    started = time.time()
    from scaling.config.files import load, run_name

    if options.config is None:
        raise ValueError("needs --config=FILE, and --config.start=RUN or --config.distill.teacher=RUN")
    config, name = load(options.config, options.overrides), run_name(options.config)
    from scaling.commands.training import train
    from scaling.train.distill import recipe

    return train(config, name, started, recipe(config, config.workdir or f"runs/{name}"))
