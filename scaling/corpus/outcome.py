"""What a stage did with documents: which go on, which were dropped and why, what failed and where."""

import collections
import dataclasses
import hashlib
import heapq
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

EXAMPLES = 4  # documents that a report shows of each reason
EXCERPT = 400  # characters of an example
BINS = 20  # of a histogram of scores from 0 to 1


@dataclasses.dataclass(frozen=True)
class Fault:
    """A piece of input that cannot be read. It is counted and named, and the rest is read."""

    file: str
    place: int  # byte offset, line or row, as the file's format has it
    reason: str  # one sentence


@dataclasses.dataclass
class Tally:
    """Figures of a stage, of one part or of many. ``add`` is associative and commutative, but for the order of faults.

    Attributes:
        documents_in, documents_out: numbers of documents.
        bytes_in, bytes_out: of their texts, in UTF-8.
        counts: of dropped documents by reason ("too short"), and of anything else that a stage counts ("windows cut").
        examples: for each reason, and for "kept", a few documents: (rank, id, beginning of the text). Those of the
            lowest rank, which is a hash of the id, are kept; so they are the same in any order.
        faults: input that could not be read.
        histograms: name of a score -> numbers of documents in ``BINS`` bins from 0 to 1.
        notes: figures of the stage as a whole, such as the classifier's, by name.
    """

    documents_in: int = 0
    documents_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    examples: dict[str, list[tuple[str, str, str]]] = dataclasses.field(default_factory=dict)
    faults: list[Fault] = dataclasses.field(default_factory=list)
    histograms: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)

    def count(self, what: str, number: int = 1) -> None:
        """Adds to a count."""
        self.counts[what] = self.counts.get(what, 0) + number

    def example(self, reason: str, id: str, text: str) -> None:
        """Keeps a document as an example, if its rank is low enough."""
        rank = hashlib.sha256(id.encode()).hexdigest()[:16]
        kept = [*self.examples.get(reason, ()), (rank, id, text[:EXCERPT])]
        self.examples[reason] = heapq.nsmallest(EXAMPLES, kept)

    def drop(self, reason: str, id: str, text: str) -> None:
        """Counts a dropped document, and keeps it as an example."""
        self.count(reason)
        self.example(reason, id, text)

    def score(self, name: str, values: Iterable[float]) -> None:
        """Adds scores between 0 and 1 to a histogram."""
        bins = self.histograms.setdefault(name, [0] * BINS)
        for value in values:
            bins[min(BINS - 1, max(0, int(value * BINS)))] += 1

    def add(self, other: "Tally") -> None:
        """Adds the figures of another part."""
        for name in ("documents_in", "documents_out", "bytes_in", "bytes_out"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.counts = dict(sorted((collections.Counter(self.counts) + collections.Counter(other.counts)).items()))
        for reason, found in other.examples.items():
            self.examples[reason] = heapq.nsmallest(EXAMPLES, [*self.examples.get(reason, ()), *found])
        self.faults.extend(other.faults)
        self.notes |= other.notes
        for name, bins in other.histograms.items():
            mine = self.histograms.get(name, [0] * BINS)
            self.histograms[name] = [a + b for a, b in zip(mine, bins, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Tally":
        """The inverse of ``to_dict``."""
        made = cls(**values)
        made.faults = [Fault(**fault) if isinstance(fault, Mapping) else fault for fault in made.faults]
        made.examples = {reason: [(one[0], one[1], one[2]) for one in found] for reason, found in made.examples.items()}
        return made


def kept(documents: pa.Table, keep: list[str], tally: Tally) -> pa.Table:
    """The documents that a filter keeps; the others are counted.

    Args:
        documents: of a part.
        keep: for each document "" if it stays, or else the reason why it is dropped.
        tally: where the dropped ones are counted.
    """
    texts, ids = documents["text"], documents["id"]
    for number, reason in enumerate(keep):
        if reason:
            tally.drop(reason, ids[number].as_py(), texts[number].as_py())
    return documents.filter(pa.array([not reason for reason in keep], pa.bool_()))
