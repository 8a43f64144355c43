"""What the readers of all formats share: the knobs, a row, and how bad input is counted and named."""

import dataclasses
import math
from typing import Any, NamedTuple

from scaling.config.knob import knob
from scaling.corpus.outcome import Fault, Tally
from scaling.corpus.reading import formats

NAMED = 100  # faults of one file that are named; further ones are counted


@dataclasses.dataclass(frozen=True)
class Read:
    """Knobs of reading."""

    text_key: str = knob("text", "", "field of the text in JSON Lines and Parquet")
    id_key: str = knob("id", "", "field of the id there; WARC has its own; '' or no such field: FILE:PLACE")
    url_key: str = knob("url", "", "field of the address there; WARC and ARC have their own; none: ''")
    votes_key: str = knob("", "", "field, or header field of WARC, of the votes that the stage votes reads; '' = none")
    html: bool = knob(False, "", "the field of the text has HTML, which the stage extract reads")
    longest: int = knob(32 << 20, "bytes", "longest document; a longer one is a fault and is left out")
    part_bytes: int = knob(32 << 20, "bytes", "content of a part; tasks need several times that in memory")

    def __post_init__(self) -> None:
        for name in ("longest", "part_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"read.{name}={getattr(self, name)} must be at least 1")


class Row(NamedTuple):
    """A document as it was read. ``kind`` says whether ``text`` or ``content`` has it."""

    place: int
    text: str = ""
    id: str = ""  # "" = it has none of its own
    url: str = ""
    kind: str = "text"  # or "html"
    content: bytes = b""  # of HTML, as stored
    charset: str = ""  # of ``content``, as its container declares it
    votes: float = math.nan  # not a number = unknown


@dataclasses.dataclass
class Source:
    """An input file that is read.

    Attributes:
        name: that ids and faults give.
        tally: where bad input and left-out records are counted.
    """

    name: str
    knobs: Read
    tally: Tally
    faults: int = 0

    def fault(self, place: int, what: str, reason: str) -> None:
        """Counts bad input, and names it unless there are very many."""
        self.tally.count(f"fault: {what}")
        self.faults += 1
        if self.faults <= NAMED:
            self.tally.faults.append(Fault(self.name, place, reason))

    def lost(self, place: int, what: str, reason: str) -> None:
        """Counts and names a document that is left out because of bad input."""
        self.tally.documents_in += 1
        self.fault(place, what, reason)

    def damaged(self, place: int, damage: formats.Damage) -> None:
        """Counts a place of a compressed file where content is lost."""
        self.fault(place, "damaged compression", f"{damage.reason}; stored byte {damage.stored}")

    def end(self) -> None:
        """Says how many faults were not named."""
        if self.faults > NAMED:
            reason = f"{self.faults - NAMED} more faults of this file are counted, but not named"
            self.tally.faults.append(Fault(self.name, 0, reason))

    def text(self, row: Row, data: bytes, charset: str = "") -> Row | None:
        """The row with a text from bytes; None if they are no text."""
        if formats.is_binary(data):
            self.lost(row.place, "binary", "the document is binary data, not text")
            return None
        text, wrong = formats.decode(data, charset)
        if wrong:
            self.fault(row.place, "not UTF-8", wrong)
        return row._replace(text=text)

    def votes(self, place: int, value: Any) -> float:
        """A number of votes; not a number if there is none, which is a fault."""
        try:
            number = float(value) if not isinstance(value, bool) else math.nan
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            key = self.knobs.votes_key
            self.fault(place, "no votes", f"the field {key!r} of the votes is missing or no number")
            return math.nan
        return number
