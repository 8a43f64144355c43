"""Counts demonstrations of tasks that occur in a corpus by themselves (Radford et al. 2019, section 2.1 and table 1).

Patterns are in ``demonstrations.toml``, or in a file of the user. They are regular expressions of RE2, as Arrow
computes them. RE2 simulates an automaton, and never goes back in the text: the time of a search is proportional to the
length of the text times, at worst, that of the pattern. So no pattern of a user can make a document take for ever.
"""

import dataclasses
import functools
import re
import tomllib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from etils import epath

from scaling.config.knob import knob
from scaling.corpus.filters.words import slices
from scaling.corpus.outcome import EXCERPT, Tally

SHIPPED = Path(__file__).with_suffix(".toml")


@dataclasses.dataclass(frozen=True)
class Demonstrations:
    """Knobs of the counts of demonstrations."""

    patterns: str = knob("", "path", "patterns, a TOML file; empty = those that ship")


@dataclasses.dataclass(frozen=True)
class Pattern:
    """What a kind of demonstration looks like.

    Attributes:
        kind: the task.
        name: of the pattern.
        contains: texts in lower case; a document must have one of them. () = the pattern is tried on all documents.
        pattern: a regular expression of RE2.
    """

    kind: str
    name: str
    contains: tuple[str, ...]
    pattern: str


def stage(documents: pa.Table, knobs: Demonstrations) -> tuple[pa.Table, Tally]:
    """Counts demonstrations; all documents stay as they are.

    For each kind there is a count "KIND: documents". For each pattern there is a count "KIND: NAME" of the places that
    match, which do not overlap, and examples of the same name, which begin with the first of these places. Several
    patterns may match at the same place.

    Args:
        documents: of a part.
        knobs: see there.

    Raises:
        OSError: cannot read the file of patterns.
        ValueError: a malformed file of patterns.
    """
    patterns, tally = load(knobs.patterns), Tally()
    for first, texts in slices(documents["text"]):
        lower, ids = pc.utf8_lower(texts), documents["id"].slice(first, len(texts))
        matched: dict[str, set[int]] = {}
        for pattern in patterns:
            places, counts = _find(texts, lower, pattern)
            if not len(places):
                continue
            name = f"{pattern.kind}: {pattern.name}"
            tally.count(name, int(counts.sum()))
            matched.setdefault(f"{pattern.kind}: documents", set()).update(places.tolist())
            these = texts.take(pa.array(places))
            starts = pc.find_substring_regex(these, pattern.pattern).to_pylist()
            for place, text, start in zip(places.tolist(), these.to_pylist(), starts, strict=True):
                tally.example(name, ids[place].as_py(), _from(text, start))
        for name, those in matched.items():
            tally.count(name, len(those))
    return documents, tally


@functools.cache
def load(path: str) -> tuple[Pattern, ...]:
    """The patterns of a file.

    Args:
        path: of a TOML file; "" = the one that ships.

    Raises:
        OSError: cannot read.
        ValueError: a malformed file, or a pattern that RE2 does not know or that matches the empty text.
    """
    file = epath.Path(path or SHIPPED)
    try:
        entries = tomllib.loads(file.read_text(encoding="utf-8")).get("pattern")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no TOML file: {error}") from None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{file} has no patterns; write them as tables [[pattern]]")
    return tuple(_pattern(entry, f"{file}, pattern {number}") for number, entry in enumerate(entries, start=1))


def _pattern(entry: object, where: str) -> Pattern:
    fields = {"kind": str, "name": str, "contains": list, "pattern": str}
    if not isinstance(entry, dict) or entry.keys() != fields.keys():
        raise ValueError(f"{where} must be a table with {', '.join(fields)}")
    for name, kind in fields.items():
        if not isinstance(entry[name], kind) or (kind is str and not entry[name]):
            raise ValueError(f"{where}: {name} must be {'a list of texts' if kind is list else 'a text'}")
    if not all(isinstance(text, str) and text for text in entry["contains"]):
        raise ValueError(f"{where}: contains must be a list of texts")
    try:
        empty = pc.match_substring_regex(pa.array([""]), entry["pattern"])[0].as_py()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{where}: {error}; it must be a regular expression of RE2") from None
    if empty:
        raise ValueError(f"{where} matches the empty text, and so everywhere")
    return Pattern(entry["kind"], entry["name"], tuple(map(str.lower, entry["contains"])), entry["pattern"])


def _from(text: str, start: int) -> str:
    """A text from a byte on."""
    return text.encode()[start : start + 4 * EXCERPT].decode(errors="ignore")


def _find(texts: pa.LargeStringArray, lower: pa.LargeStringArray, pattern: Pattern) -> tuple[np.ndarray, np.ndarray]:
    """The places of the documents that match, int64 [k], and how often each does, [k]."""
    places = np.arange(len(texts))
    if pattern.contains:
        literal = "|".join(map(re.escape, pattern.contains))
        places = places[pc.match_substring_regex(lower, literal).to_numpy(zero_copy_only=False)]
    counts = pc.count_substring_regex(texts.take(pa.array(places)), pattern.pattern).to_numpy(zero_copy_only=False)
    return places[counts > 0], counts[counts > 0]
