"""The verb ``logits``: writes a model's logits for given token ids, to compare with other programs."""

import argparse
from pathlib import Path

from scaling import exit_codes


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what ``logits`` reads."""
    parser.add_argument("model", metavar="MODEL", help="run directory, or folder with config.json, model.safetensors")
    parser.add_argument("--ids", required=True, metavar="IDS.npy", help="token ids, integers [batch, time]")
    parser.add_argument("--output", required=True, metavar="LOGITS.npy", help="float32 [batch, time, vocabulary]")


def run(options: argparse.Namespace) -> int:
    """Computes the logits, writes them and prints the path.

    Raises:
        ValueError: the ids cannot be used, or the output is not named .npy.
        OSError: the output cannot be written.
    """
    import numpy as np

    if Path(options.output).suffix != ".npy":
        raise ValueError(f"--output={options.output} must end in .npy")
    try:
        ids = np.load(options.ids, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{options.ids} is not a NumPy .npy file: {error}") from error
    if not isinstance(ids, np.ndarray) or ids.ndim not in (1, 2) or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{options.ids} must hold token ids, an integer array of shape [batch, time] or [time]")
    from scaling.durable import check_writable, naming
    from scaling.interop.logits import logits

    check_writable(options.output)
    found = logits(options.model, ids)
    with naming(options.output):
        np.save(options.output, found)
    print(options.output)
    return exit_codes.OK
