"""Exact deduplication: of documents with the same text, one is kept, in all data sets together.

Texts are the same if they are equal after canonical decomposition (Unicode NFD) and with each run of white space as one
space and none at the ends. Case and punctuation count. What is compared is a 128-bit digest (BLAKE2b), so among 10^10
documents two different texts are taken for the same with probability 10^-19.

The document that is kept is the first by the priority of the data sets, then by place. So GPT-3's removal of WebText
from Common Crawl (arXiv 2005.14165, Appendix A) is ``order=("webtext", "common_crawl")``.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scaling.config.knob import knob
from scaling.corpus import documents
from scaling.corpus.duplicates import shared as dup


@dataclasses.dataclass(frozen=True)
class Exact:
    order: tuple[str, ...] = knob((), "", "data sets whose copy is kept first, in order; then those not named")


def steps(found: Mapping[str, Sequence[Path]], folder: Path, knobs: Exact) -> list[dup.Step]:
    """What is to be done, in order. The step "drop" writes the parts; its results are tallies.

    Args:
        found: data set -> its parts, in their order.
        folder: of the stage: parts are written into ``DATASET/``, files of the steps into ``work/``
            with 24 bytes a document.
        knobs: of the stage.

    Raises:
        ValueError: ``knobs.order`` names something else than data sets.
    """
    corpus, parts = dup.find(found, folder, knobs.order)
    work = corpus.work
    partitions = 1 + corpus.rows // dup.ENTRIES
    return [
        dup.Step("digests", digests, [(work, part) for part in parts], ("digests",)),
        dup.Step("choose", choose, [(corpus, number, partitions) for number in range(partitions)], ("losers",)),
        dup.Step("drop", dup.drop, [(corpus, part, partitions, "exact duplicate") for part in parts]),
    ]


def same(texts: pa.Array) -> pa.Array:
    """The texts as they are compared: in NFD, each run of white space as one space, none at the ends."""
    texts = pc.utf8_normalize(texts, form="NFD")  # its "NFC" decomposes, too (pyarrow 25)
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(texts, r"[\s\v\x1c-\x1f\x{85}\p{Z}]+", " "))


def digests(work: Path, part: dup.Part) -> dict[str, Any]:
    """Step 1, of a part: writes (upper half of the digest, lower half, key) of its documents, sorted.

    Returns:
        The number of documents.
    """
    table = documents.read(part.source)
    made = np.empty((3, len(table)), np.uint64)
    row = 0
    for batch in table["text"].chunks:
        for text in _bytes(same(batch)):
            made[:2, row] = np.frombuffer(hashlib.blake2b(text, digest_size=16).digest(), ">u8")
            row += 1
    made[2] = dup.keys_of(part, np.arange(len(table)))
    dup.save_sorted(made, dup.path_of(work, "digests", part.number))
    return {"documents": len(table)}


def choose(corpus: dup.Corpus, number: int, partitions: int) -> dict[str, Any]:
    """Step 2, of a range of digests: writes (key of a duplicate, key of the document that is kept).

    Returns:
        The number of duplicates.
    """
    entries = dup.partition_entries(corpus.work, "digests", corpus.parts, *dup.bounds(number, partitions))
    upper, lower, keys = entries[:, np.lexsort((entries[2], entries[1], entries[0]))]
    begin = dup.groups(upper, lower)
    first = np.repeat(begin[:-1], np.diff(begin))  # of the group that an entry is in
    losers = np.flatnonzero(first != np.arange(len(keys)))
    dup.save_sorted(np.stack([keys[losers], keys[first[losers]]]), dup.path_of(corpus.work, "losers", number))
    return {"duplicates": len(losers)}


def _bytes(texts: pa.Array) -> Iterator[memoryview]:
    """The bytes of each text, not copied."""
    ends = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    data = memoryview(texts.buffers()[2] or b"")
    for first, last in itertools.pairwise(ends.tolist()):
        yield data[first:last]
