"""Finds ids that several documents of a corpus have, and makes them unique.

A document's own id may occur twice, in one file or in two. It may also be a name that the build gives later: to a
renamed document, or to a piece of another one (``decontaminate``). Nothing is known of other files while one is read,
so this takes three steps: each part gives hashes of its ids (16 bytes a document), a pass over a range of hashes finds
the repeated ones in it, and each part renames its documents that have one. The result does not depend on the order of
the parts.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from scaling.corpus import documents as columns
from scaling.corpus.outcome import Fault, Tally
from scaling.corpus.reading.source import NAMED

_OWN, _BASE = 0, 1  # what a hash is of: an id, or an id that another one looks as if it were made of
_MADE = re.compile(r"([#:])\d+\Z")  # how ID#NUMBER of pieces and ID@FILE:PLACE of renamed documents end


def hashes(documents: pa.Table) -> np.ndarray:
    """Hashes of the id of each document, and of the ids that a build might have made it of, uint64 [2, n].

    The second row says which of both a hash is of.
    """
    found = []
    for id in documents["id"].to_pylist():
        found.append((_hash(id), _OWN))
        found += [(_hash(base), _BASE) for base in _bases(id)]
    return np.array(found, np.uint64).reshape(-1, 2).T


def repeated(entries: np.ndarray) -> np.ndarray:
    """The hashes of ids that are not unique, sorted: of several documents, or of one that others may be named after.

    Two different ids have the same hash with a probability of 3 % among 10^9 documents. Both are renamed then, which
    does no harm.

    Args:
        entries: ``hashes`` of all parts of the corpus, of a range of hashes, in any order.
    """
    values, which = np.unique(entries[0], return_inverse=True)
    own, base = (np.bincount(which[entries[1] == kind], minlength=len(values)) for kind in (_OWN, _BASE))
    return values[(own > 1) | ((own > 0) & (base > 0))]


def renamed(documents: pa.Table, again: Sequence[np.ndarray]) -> tuple[pa.Table, Tally]:
    """The documents with ids that are unique; each renamed one is a fault with its file and place.

    The id of every document that has a repeated one, also the first, becomes ``ID@FILE:PLACE``, and so does one that
    looks as if it were made of a repeated one. So none depends on which document comes first, and none is lost. Faults
    beyond ``source.NAMED`` of a part are counted only.

    Args:
        documents: of a part.
        again: of ``repeated``, for each range of hashes.
    """
    tally = Tally()
    ids, files, places = (documents[name].to_pylist() for name in ("id", "file", "place"))
    entries = hashes(documents)
    taken = np.zeros(entries.shape[1], bool)
    for values in again:
        spots = np.minimum(np.searchsorted(values, entries[0]), len(values) - 1)
        taken |= values[spots] == entries[0]
    starts = np.flatnonzero(entries[1] == _OWN)
    rows = np.flatnonzero(np.logical_or.reduceat(taken, starts)) if len(starts) else starts
    for number, row in enumerate(rows):
        tally.count("fault: repeated id")
        if number < NAMED:
            reason = f"the id {ids[row]!r} is not this document's alone; it is renamed"
            tally.faults.append(Fault(files[row], places[row], reason))
        ids[row] = f"{ids[row]}@{files[row]}:{places[row]}"
    return columns.with_column(documents, "id", pa.array(ids, pa.string())), tally


def _hash(id: str) -> int:
    return int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest(), "little")


def _bases(id: str) -> Iterator[str]:
    """The ids that an id may be a new name of."""
    if not (found := _MADE.search(id)):
        return
    if found[1] == "#":
        yield id[: found.start()]
        yield from _bases(id[: found.start()])
        return
    for place in re.finditer("@", id):
        yield id[: place.start()]
