"""The verbs ``tokenizer train``, for a sentencepiece tokenizer, and ``tokenizer reduce``, for that of a draft."""

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
    reduce = add_verb(
        verbs, "reduce", "keep the most frequent tokens of a tokenizer, for a draft", run_reduce, stdout=Stdout.LOG
    )
    reduce.add_argument("tokenizer", metavar="TOKENIZER", help="gpt2, bytes, books or a path: the model's tokenizer")
    reduce.add_argument("input", metavar="INPUT", help="text files whose tokens are counted, as those of train")
    reduce.add_argument(
        "--vocab_size", type=int, required=True, metavar="N", help="tokens, that of all others included"
    )
    reduce.add_argument("--output", required=True, metavar="FILE.reduced", help="file for the tokenizer")
    reduce.add_argument("--text_key", default="text", help="field that holds the text in records (default: text)")


def run(options: argparse.Namespace) -> int:
    """Trains the tokenizer and prints the path of its file."""
    from scaling.data.tokenizer_training import train_tokenizer

    print(train_tokenizer(options.input, options.vocab_size, options.output, text_key=options.text_key))
    return exit_codes.OK


def run_reduce(options: argparse.Namespace) -> int:
    """Writes the part of the tokenizer; prints the path of its file and how much of the texts it has."""
    from scaling.data.tokenizer_training import reduce_tokenizer

    path, share = reduce_tokenizer(
        options.tokenizer, options.input, options.vocab_size, options.output, text_key=options.text_key
    )
    print(f"{path}: {options.vocab_size:,} tokens, with {share:.1%} of those of the texts")
    return exit_codes.OK
