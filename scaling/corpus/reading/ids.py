"""Finds ids that several documents of a corpus have, and makes them unique.

A document's own id may occur twice, in one file or in two. Nothing is known of other files while one is read, so this
takes three steps: each part gives hashes of its ids (8 bytes a document), one pass over the hashes finds the repeated
ones, and each part renames its documents that have one. The result does not depend on the order of the parts.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from scaling.corpus import documents as columns
from scaling.corpus.outcome import Fault, Tally
from scaling.corpus.reading.source import NAMED


def hashes(documents: pa.Table) -> np.ndarray:
    """A hash of the id of each document, [documents] uint64."""
    digests = (hashlib.blake2b(id.encode(), digest_size=8).digest() for id in documents["id"].to_pylist())
    return np.frombuffer(b"".join(digests), dtype="<u8")


def repeated(parts: Iterable[np.ndarray], share: int = 0, shares: int = 1) -> np.ndarray:
    """The hashes that occur more than once, sorted.

    Two different ids have the same hash with a probability of 3 % among 10^9 documents. Both are renamed then, which
    does no harm.

    Args:
        parts: ``hashes`` of all parts of the corpus, in any order.
        share: which hashes are looked at: those with this remainder of a division by ``shares``.
        shares: by what the memory is divided; the results of all shares together are all repeated hashes.
    """
    found = [part[part % np.uint64(shares) == share] if shares > 1 else part for part in parts]
    values, counts = np.unique(np.concatenate([*found, np.empty(0, "<u8")]), return_counts=True)
    return values[counts > 1]


def renamed(documents: pa.Table, again: np.ndarray) -> tuple[pa.Table, Tally]:
    """The documents with ids that are unique; each renamed one is a fault with its file and place.

    The id of every document that has a repeated one, also the first, becomes ``ID@FILE:PLACE``. So none depends on
    which document comes first, and none is lost. Faults beyond ``source.NAMED`` of a part are counted only.

    Args:
        documents: of a part.
        again: of ``repeated``.
    """
    tally = Tally()
    taken = np.isin(hashes(documents), again)
    if not taken.any():
        return documents, tally
    ids, files, places = (documents[name].to_pylist() for name in ("id", "file", "place"))
    for number, row in enumerate(np.flatnonzero(taken)):
        tally.count("fault: repeated id")
        if number < NAMED:
            reason = f"the id {ids[row]!r} belongs to several documents; this one is renamed"
            tally.faults.append(Fault(files[row], places[row], reason))
        ids[row] = f"{ids[row]}@{files[row]}:{places[row]}"
    return columns.with_column(documents, "id", pa.array(ids, pa.string())), tally
