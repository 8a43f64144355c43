"""Token shards for tests, and ways to damage them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module

from scaling.data import shards
from scaling.data.tokenizer import ByteTokenizer


def make(folder: Path, documents: int, vocab: int = 256) -> list[Path]:
    """Writes shards of random documents of 1,000 bytes into a new folder; returns their files."""
    folder.mkdir(parents=True)
    dice = np.random.default_rng(0)
    writer = shards.ShardWriter(folder, ByteTokenizer())
    for _ in range(documents):
        writer.append(dice.integers(0, vocab, 1000))
    writer.close()
    return sorted(folder.glob("*.array_record"))


def rewrite(shard: Path, change: Callable[[list[bytes]], Any]) -> None:
    """Writes a shard anew, with its hashes, after ``change`` of its records."""
    reader = array_record_module.ArrayRecordReader(str(shard))
    records = reader.read_all()
    reader.close()
    change(records)
    writer = array_record_module.ArrayRecordWriter(str(shard), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def flip(shard: Path) -> None:
    """Changes one bit in the middle of a record."""
    content = bytearray(shard.read_bytes())
    content[1200] ^= 8
    shard.write_bytes(content)
