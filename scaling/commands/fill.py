"""The verb ``fill``: what an encoder puts in the place of hidden tokens."""

import argparse
import json

from scaling import exit_codes


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what ``fill`` reads."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="run directory, or folder with config.json, model.safetensors")
    add(
        "--prompt",
        action="append",
        required=True,
        metavar="TEXT",
        help="with <|mask|> where a token is hidden; repeatable",
    )
    add("--top", type=int, default=5, metavar="N", help="tokens for each place (default: 5)")
    add("--json", action="store_true", help="print a JSON object for each text")


def run(options: argparse.Namespace) -> int:
    """Prints the most likely tokens for each hidden place.

    Raises:
        FileNotFoundError: no model there.
        ValueError: a text, an option or a model that cannot be used.
    """
    from scaling.interop.fill import fill
    from scaling.interop.served import load_served

    served = load_served(options.model)
    for text in options.prompt:
        found = fill(served.network, served.params, served.words, text, options.top)
        if options.json:
            places = [[each._asdict() for each in place] for place in found]
            print(json.dumps({"prompt": text, "places": places}, ensure_ascii=False))
            continue
        print(text)
        for number, place in enumerate(found, start=1):
            shown = ", ".join(f"{each.text!r} {each.probability:.3f}" for each in place)
            print(f"  {number}: {shown}")
    return exit_codes.OK
