"""Keeps documents that enough people voted for, before their text is extracted.

WebText holds the pages that Reddit links with at least 3 karma point to (Radford et al. 2019, section 2.1).
"""

import dataclasses

import pyarrow as pa

from scaling.config.knob import knob
from scaling.corpus.outcome import Tally, kept


@dataclasses.dataclass(frozen=True)
class Votes:
    """Knobs of the selection by votes."""

    least: float = knob(3.0, "votes", "documents with fewer are dropped, and those whose number is unknown")


def votes(documents: pa.Table, knobs: Votes) -> tuple[pa.Table, Tally]:
    """The documents that have at least ``knobs.least`` votes.

    Args:
        documents: with the column ``votes``, which ``read`` fills by its knob ``votes_key``; not a number = unknown.
        knobs: the least number.

    Raises:
        ValueError: there is no column of votes.
    """
    if "votes" not in documents.column_names:
        raise ValueError("the documents have no votes; config.read.votes_key must name their field")
    tally = Tally()
    reasons = [
        "" if number >= knobs.least else "too few votes" if number < knobs.least else "number of votes unknown"
        for number in documents["votes"].to_pylist()
    ]
    return kept(documents, reasons, tally), tally
