"""The verb ``predict``: predicts losses and optimal sizes from a fit. Imports JAX only when it runs."""

import argparse
import json

from scaling import exit_codes


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what ``predict`` reads."""
    add = parser.add_argument
    add("fit", metavar="FIT.json", help="file with the output of `scaling fit --json`")
    add("--flops", type=float, metavar="C", help="number of training FLOPs")
    add("--params", type=float, metavar="N", help="number of parameters")
    add("--tokens", type=float, metavar="D", help="number of training tokens")
    add("--unique", type=float, metavar="U", help="tokens before the data repeats (default: the data never repeats)")
    add("--json", action="store_true", help="print JSON, for programs")


def run(options: argparse.Namespace) -> int:
    """Predicts and prints the predictions.

    Raises:
        ValueError: a file that does not contain a fit, or sizes for which it cannot predict.
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
