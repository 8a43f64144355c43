"""The verb ``export``: writes the model and tokenizer of a run as a Hugging Face folder."""

import argparse

from scaling import exit_codes


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what ``export`` reads."""
    parser.add_argument("run_directory", metavar="RUN", help="run directory")
    parser.add_argument("folder", metavar="HF_DIR", nargs="?", help="new or empty folder to write to")
    parser.add_argument("--output", metavar="DIR", help="the same, as an option")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="type of the tensors"
    )
    parser.add_argument(
        "--adapters", action="store_true", help="only the adapters of a run with config.lora.rank, as a folder of PEFT"
    )
    parser.add_argument("--generator", action="store_true", help="the generator of a discriminator, in its place")
    parser.add_argument("--shard_gb", type=float, default=5.0, metavar="GB", help="largest size of a file of tensors")


def run(options: argparse.Namespace) -> int:
    """Writes the folder, and prints where it is.

    Raises:
        ValueError: no folder, two, or one in a store.
    """
    from scaling.interop import huggingface, peft
    from scaling.paths import must_be_local, must_be_utf8, must_lead_somewhere

    if (options.folder is None) == (options.output is None):
        raise ValueError("needs one folder to write: scaling export RUN HF_DIR")
    folder = options.folder or options.output
    must_be_local("the folder", folder)
    must_lead_somewhere(folder)
    must_be_utf8("the folder", folder)
    if options.adapters and options.generator:
        raise ValueError("--adapters and --generator are two things; give one of them")
    if options.adapters:
        peft.export(options.run_directory, folder, options.dtype)
    else:
        huggingface.export(options.run_directory, folder, options.dtype, options.shard_gb, options.generator)
    print(folder)
    return exit_codes.OK
