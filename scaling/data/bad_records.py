"""Replaces sequences that cannot be read by others (``config.data.bad_records=skip``).

The replacement is a function of the number of the sequence, and does not depend on the process or the time. It is kept
for the rest of the run: a shard that is missing for an hour must not change what a resume reads.
"""

import hashlib
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from scaling.data.shards import TokenDataset

log = logging.getLogger(__name__)

_TRIES = 100  # stand-ins that may be unreadable, too, before the data are given up
_NAMED = 10  # sequences named in the log


class BadRecords:
    """The sequences that were replaced in a run so far, in all of its data; safe for threads."""

    def __init__(self) -> None:
        self._stand_ins: dict[tuple[str, int], int] = {}  # (fingerprint of the data, sequence)
        self._note: Callable[[dict[str, Any]], None] = lambda record: None
        self._lock = threading.Lock()
        self.known = 0  # sequences that were replaced before, by any process
        self.new = 0  # and by this one since

    def keep(self, known: Iterable[Mapping[str, Any]], note: Callable[[dict[str, Any]], None]) -> None:
        """Takes over earlier records; to be called before anything is read.

        Args:
            known: records of earlier processes of the run, oldest first.
            note: is given each new record: data (a fingerprint), sequence, stand_in and reason.

        Raises:
            KeyError, TypeError, ValueError: a record that is none.
        """
        self._stand_ins = {(str(r["data"]), int(r["sequence"])): int(r["stand_in"]) for r in known}
        self.known, self._note = len(self._stand_ins), note

    def find(self, data: str, sequence: int) -> int | None:
        """The stand-in of a sequence that was replaced before."""
        return self._stand_ins.get((data, sequence))

    def add(self, data: str, sequence: int, stand_in: int, reason: str) -> None:
        with self._lock:
            key = data, sequence
            if self._stand_ins.get(key) == stand_in:
                return  # another thread was quicker
            self.new += key not in self._stand_ins
            self._stand_ins[key] = stand_in
            self._note({"data": data, "sequence": sequence, "stand_in": stand_in, "reason": reason})
            if self.new <= _NAMED:
                log.warning("sequence %d is left out, and %d stands in for it: %s", sequence, stand_in, reason)
            if self.new == _NAMED:
                log.warning("further sequences that are left out are only noted in the run directory")


class Replacing(Sequence[np.ndarray]):
    """The sequences of a token directory, with replacements for those that cannot be read."""

    def __init__(self, dataset: TokenDataset, bad: BadRecords):
        self._dataset, self._bad, self._name = dataset, bad, dataset.fingerprint

    def __repr__(self) -> str:
        return repr(self._dataset)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, i: Any) -> Any:
        """Sequence i, int32 [T+1].

        Raises:
            IndexError: there is no such sequence.
            ValueError: neither it nor any of its stand-ins can be read.
        """
        known = self._bad.find(self._name, int(i))
        wanted = int(i) if known is None else known
        try:
            return self._dataset[wanted]
        except (ValueError, OSError) as error:
            reason = str(error)
        for number in range(_TRIES):
            other = _stand_in(int(i), number, len(self))
            try:
                tokens = self._dataset[other]
            except (ValueError, OSError):
                continue
            self._bad.add(self._name, int(i), other, reason)
            return tokens
        raise ValueError(f"{reason}; nor can any of {_TRIES} other sequences be read in its place")


def _stand_in(sequence: int, number: int, total: int) -> int:
    """The first, second, ... replacement to try; spread over the data, because neighbours may be damaged too."""
    return int.from_bytes(hashlib.blake2b(f"{sequence} {number}".encode(), digest_size=8).digest()) % total
