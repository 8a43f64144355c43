"""The verb ``tokenizer train``: trains a sentencepiece tokenizer on text files."""

import argparse

from scaling import exit_codes
from scaling.commands.verb import add_verb, add_verbs
from scaling.output import Stdout


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what ``tokenizer`` reads."""
    verbs = add_verbs(parser, required=True)
    train = add_verb(verbs, "train", "train a sentencepiece tokenizer on text files", run, stdout=Stdout.LOG)
    train.add_argument("input", metavar="INPUT", help="text files: a path or glob of .txt, .jsonl(.gz), .parquet")
    train.add_argument("--vocab_size", type=int, required=True, metavar="N", help="number of tokens in the vocabulary")
    train.add_argument("--output", required=True, metavar="FILE.model", help="file for the tokenizer")
    train.add_argument("--text_key", default="text", help="field that holds the text in records (default: text)")


def run(options: argparse.Namespace) -> int:
    """Trains the tokenizer and prints the path of its file."""
    from scaling.data.tokenizer_training import train_tokenizer

    print(train_tokenizer(options.input, options.vocab_size, options.output, text_key=options.text_key))
    return exit_codes.OK
