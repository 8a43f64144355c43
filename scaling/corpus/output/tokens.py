"""Tokenizes the parts of a data set into one token directory (see ``scaling.data.shards``).

``encode`` makes a stream of ids of a part; parts are encoded in any order, by any number of processes. ``join`` then
writes the streams into shards in the order of their names. That is quick: a stream has few bytes, and nothing is left
to be computed. The result is byte for byte that of ``scaling tokenize`` of the same Parquet files.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from scaling import durable
from scaling.config.knob import knob
from scaling.corpus.outcome import Tally
from scaling.corpus.output import folders
from scaling.data import shards, tokenizer
from scaling.data.tokenizer import Tokenizer

_BATCH_ROWS = 256  # texts that are Python objects at the same time


@dataclasses.dataclass(frozen=True)
class Tokens:
    tokenizer: str = knob("gpt2", "", "gpt2, bytes, books (embedded sentencepiece) or a tokenizer file")


@functools.cache
def load(name: str, fingerprint: str) -> Tokenizer:
    """A tokenizer, which a process makes once and keeps for all its parts.

    Args:
        name: as of ``scaling.data.tokenizer.load``.
        fingerprint: that it had when the build began.

    Raises:
        FileNotFoundError, ValueError, OSError: as of ``scaling.data.tokenizer.load``; or the file is another now.
    """
    found = tokenizer.load(name)
    if found.fingerprint != fingerprint:
        raise ValueError(f"the tokenizer {name} has changed since the build began; restore it, or build anew")
    return found


def encode(documents: pa.Table, words: Tokenizer) -> tuple[np.ndarray, Tally]:
    """The ids of the documents of a part, each followed by the end-of-text token.

    Empty documents are left out, as in training on text.

    Returns:
        ``shards.dtype_of(words)`` [tokens]. The tally counts tokens and documents.
    """
    dtype, tally = shards.dtype_of(words), Tally()
    found = [np.empty(0, dtype)]
    for batch in documents.select(["id", "text"]).to_batches(max_chunksize=_BATCH_ROWS):
        texts = batch.column("text").to_pylist()
        for row in [row for row, text in enumerate(texts) if not text]:
            tally.drop("empty", batch.column("id")[row].as_py(), "")
        kept = [text for text in texts if text]
        found.append(words.encode_stream(kept).astype(dtype))
        tally.count("documents", len(kept))
    stream = np.concatenate(found)
    tally.count("tokens", stream.size)
    return stream, tally


def write(stream: np.ndarray, path: Path) -> None:
    """Writes a stream of ``encode`` as an ``.npy`` file, whole or not at all.

    Raises:
        OSError: cannot write.
    """
    with durable.replaced(path) as partial, partial.open("wb") as file:
        np.save(file, stream)


def join(streams: Sequence[Path], words: Tokenizer, output: Path) -> shards.Index:
    """Writes streams into a token directory; one that is there is replaced.

    Args:
        streams: files of ``write``, in the order of the parts; one is held in memory at a time.
        words: the tokenizer that made them.
        output: the token directory.

    Raises:
        OSError: cannot write.
        ValueError: there is not one document.
    """
    with folders.whole(output) as made:
        writer = shards.ShardWriter(made, words)
        for path in streams:
            writer.extend(np.load(path, allow_pickle=False))
        if not writer.documents:
            raise ValueError(f"no document is left for {output}; see in the report which stage dropped them")
        return writer.close()
