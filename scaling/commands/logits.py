"""The verb ``logits``: writes a model's logits for given token ids, to compare with other programs."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from scaling import exit_codes

if TYPE_CHECKING:
    import numpy as np


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what ``logits`` reads."""
    parser.add_argument("model", metavar="MODEL", help="run directory, or folder with config.json, model.safetensors")
    parser.add_argument("--ids", required=True, metavar="IDS.npy", help="token ids, integers [batch, time]")
    parser.add_argument("--mask", metavar="MASK.npy", help="of an encoder: 1 at tokens, 0 at padding, like the ids")
    parser.add_argument("--types", metavar="TYPES.npy", help="types of the tokens, like the ids (default: all 0)")
    parser.add_argument(
        "--decoder_ids", metavar="IDS.npy", help="of a model with encoder and decoder: the decoder's [batch, time]"
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="LOGITS.npy",
        help="float32 [batch, time, vocabulary], or of a discriminator [batch, time]",
    )


def run(options: argparse.Namespace) -> int:
    """Computes the logits, writes them and prints the path.

    Raises:
        ValueError: the ids cannot be used, or the output is not named .npy.
        OSError: the output cannot be written.
    """
    if Path(options.output).suffix != ".npy":
        raise ValueError(f"--output={options.output} must end in .npy")
    given = (options.ids, options.mask, options.types, options.decoder_ids)
    ids, mask, types, decoder_ids = (path and _integers(path) for path in given)
    import numpy as np

    from scaling.durable import check_writable, naming
    from scaling.interop.logits import logits

    check_writable(options.output)
    found = logits(options.model, ids, mask, types, decoder_ids)
    with naming(options.output):
        np.save(options.output, found)
    print(options.output)
    return exit_codes.OK


def _integers(path: str) -> "np.ndarray":
    import numpy as np

    try:
        found = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a NumPy .npy file: {error}") from error
    if not isinstance(found, np.ndarray) or found.ndim not in (1, 2) or not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"{path} must hold token ids, an integer array of shape [batch, time] or [time]")
    return found
