"""The verb ``config``: prints a config as a run would see it, the reference of knobs, or the shipped experiments."""

import argparse

from scaling import exit_codes


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what ``config`` reads."""
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--describe", action="store_true", help="print a Markdown table of all knobs instead")
    instead.add_argument("--list", action="store_true", help="print the experiments that ship, by name, instead")
    parser.add_argument("--devices", type=int, metavar="N", help="resolve the mesh for N devices")


def run(options: argparse.Namespace) -> int:
    """Prints the resolved config as JSON, or one of the two lists.

    Raises:
        ValueError: a config that cannot work.
    """
    if options.describe:
        from scaling.config.describe import to_markdown

        print(to_markdown(), end="")
        return exit_codes.OK
    if options.list:
        from scaling.config.shipped import to_text

        print(to_text())
        return exit_codes.OK
    from scaling.config.files import load, run_name
    from scaling.config.resolve import resolve
    from scaling.config.schema import to_json
    from scaling.evaluate.tasks.knobs import check_tasks

    if options.devices is not None and options.devices < 1:
        raise ValueError(f"--devices={options.devices} must be at least 1")
    name = run_name(options.config) if options.config else None
    config = resolve(load(options.config, options.overrides), device_count=options.devices, name=name)
    check_tasks(config)
    print(to_json(config))
    return exit_codes.OK
