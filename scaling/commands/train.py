"""The verb ``train``: refuses bad configs before JAX is imported; ``commands/training.py`` does the work."""

import argparse
import time


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares nothing, because everything is in the config."""


def run(options: argparse.Namespace) -> int:
    """Trains the model of ``--config``, or resumes its run.

    Raises:
        ValueError: no config, or one that cannot work.
    """
    started = time.time()
    from scaling.config.files import is_sweep, load, run_name
    from scaling.config.resolve import resolve
    from scaling.evaluate.tasks.knobs import check_tasks

    if options.config is None:
        from scaling.config.shipped import experiments

        found = ", ".join(name for name in experiments() if not is_sweep(name))
        raise ValueError(f"needs --config=FILE, your own experiment or one that ships: {found}")
    config, name = load(options.config, options.overrides), run_name(options.config)
    check_tasks(resolve(config, name=name))
    from scaling.commands.training import train

    return train(config, name, started)
