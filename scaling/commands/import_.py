"""The verb ``import``: a run directory of a Hugging Face folder or a GGUF file."""

import argparse

from scaling import exit_codes


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what ``import`` reads."""
    parser.add_argument(
        "folder",
        metavar="HF_DIR",
        help="Hugging Face folder (config.json, safetensors, tokenizer), or a .gguf file of llama.cpp",
    )
    parser.add_argument("output", metavar="RUN", help="a new or empty folder")
    parser.add_argument("--tokenizer", help="gpt2, bytes, books or a path, if not the folder's own")


def run(options: argparse.Namespace) -> int:
    """Makes the run directory, and prints where it is."""
    from scaling.interop.import_run import import_folder

    import_folder(options.folder, options.output, options.tokenizer)
    print(options.output)
    return exit_codes.OK
