"""The verb ``predict``: what a fit says about sizes and budgets. Imports JAX only when it runs."""

import argparse
import json

from scaling import exit_codes


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what ``predict`` reads."""
    add = parser.add_argument
    add("fit", metavar="FIT.json", help="what `scaling fit --json` printed")
    add("--flops", type=float, metavar="C", help="training FLOPs")
    add("--params", type=float, metavar="N", help="parameters")
    add("--tokens", type=float, metavar="D", help="training tokens")
    add("--unique", type=float, metavar="U", help="tokens before the data repeats (default: never)")
    add("--json", action="store_true", help="for programs")


def run(options: argparse.Namespace) -> int:
    """Predicts and prints.

    Raises:
        ValueError: a file that is no fit, or sizes that it cannot use.
    """
    from scaling.platforms import only_cpu

    only_cpu()
    from scaling.laws.fit import load_fit
    from scaling.laws.predict import predict
    from scaling.laws.summary import prediction_to_text

    found = predict(
        load_fit(options.fit),
        flops=options.flops,
        params=options.params,
        tokens=options.tokens,
        unique=options.unique,
    )
    print(json.dumps(found) if options.json else prediction_to_text(found))
    return exit_codes.OK
