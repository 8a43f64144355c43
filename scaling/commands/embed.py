"""The verb ``embed``: vectors of texts."""

import argparse
from pathlib import Path

from scaling import exit_codes


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what ``embed`` reads."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="run directory, or folder with config.json, model.safetensors")
    add("--texts", required=True, metavar="FILE", help="a text a line, or JSON Lines with --text_key")
    add("--text_key", default="text", metavar="KEY", help="field of JSON Lines (default: text)")
    add("--output", required=True, metavar="VECTORS.npy", help="float32 [texts, width]")
    add("--pool", default="mean", metavar="HOW", help="mean, first, last or pooler of a text's states (default: mean)")
    add("--normalize", action="store_true", help="divide each vector by its length")
    add("--batch_size", type=int, default=32, metavar="N", help="texts at a time (default: 32)")


def run(options: argparse.Namespace) -> int:
    """Computes the vectors, writes them and prints the path.

    Raises:
        FileNotFoundError: no model or file.
        ValueError: texts, an option or a model that cannot be used.
        OSError: the output cannot be written.
    """
    import numpy as np

    from scaling.durable import check_writable, naming
    from scaling.interop.served import load_served
    from scaling.interop.vectors import vectors

    if Path(options.output).suffix != ".npy":
        raise ValueError(f"--output={options.output} must end in .npy")
    if options.batch_size < 1:
        raise ValueError(f"--batch_size={options.batch_size} must be 1 or more")
    check_writable(options.output)
    texts = _texts(options.texts, options.text_key)
    if not texts:
        raise ValueError(f"{options.texts} holds no texts")
    served = load_served(options.model)
    found = vectors(served.network, served.params, served.words, texts, options.pool, options.batch_size)
    if options.normalize:
        found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    with naming(options.output):
        np.save(options.output, found)
    print(options.output)
    return exit_codes.OK


def _texts(path: str, key: str) -> list[str]:
    from scaling.data import sources

    if ".jsonl" in Path(path).suffixes:
        return [sources.text_of(record.get(key), key, where) for where, record in sources.records([path])]
    try:
        return Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
