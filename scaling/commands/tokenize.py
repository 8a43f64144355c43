"""The verb ``tokenize``: tokenizes text files into shards, as a run would do."""

import argparse

from scaling import exit_codes


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what ``tokenize`` reads."""
    parser.add_argument("input", metavar="INPUT", help="text files: a path or glob of .txt, .jsonl(.gz), .parquet")
    parser.add_argument("--tokenizer", required=True, metavar="NAME", help="gpt2, bytes, books or a tokenizer file")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the shards")
    parser.add_argument("--control_field", default="", help="field of records with their control code, as in CTRL")
    parser.add_argument("--text_key", default="text", help="field that holds the text in records (default: text)")


def run(options: argparse.Namespace) -> int:
    """Tokenizes the text and prints the folder of the shards."""
    from scaling.data.prepare import prepare

    fields = {"text_key": options.text_key, "control_field": options.control_field}
    print(prepare(options.input, options.tokenizer, options.output, **fields))
    return exit_codes.OK
