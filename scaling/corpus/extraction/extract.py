"""Extracts the main text of HTML pages, and cleans all texts: Unicode, Project Gutenberg, wiki markup."""

import dataclasses
import functools
import os
import re

import pyarrow as pa

from scaling.config.knob import knob
from scaling.corpus import documents as columns
from scaling.corpus.extraction import clean
from scaling.corpus.extraction.extractor import Extractor, Settings, Stopped
from scaling.corpus.outcome import Fault, Tally
from scaling.corpus.reading import formats
from scaling.corpus.reading.source import NAMED

EXTRACTORS = ("trafilatura", "resiliparse")
FORMS = ("", "NFC", "NFD", "NFKC", "NFKD")
_RAW = ("kind", "content", "charset", "votes")  # columns that end here


@dataclasses.dataclass(frozen=True)
class Extract:
    """Knobs of extraction."""

    extractor: str = knob("trafilatura", "", f"what finds the main text of HTML: {' or '.join(EXTRACTORS)}")
    comments: bool = knob(False, "", "keeps comments of readers")
    tables: bool = knob(True, "", "keeps tables (trafilatura; resiliparse always does)")
    largest: int = knob(10_000_000, "bytes", "largest page; a larger one is left out")
    deepest: int = knob(250, "elements", "deepest nesting of a page; libxml2, which trafilatura uses, goes to 256")
    tags: int = knob(200_000, "", "most tags of a page; extraction takes about 0.1 ms a tag")
    seconds: float = knob(120.0, "s", "processor time after which a page is stopped that no other limit has refused")
    memory: int = knob(4 << 30, "bytes", "address space of the process that extracts")
    normalization: str = knob("NFC", "", "Unicode normal form; '' = as it is")
    controls: bool = knob(True, "", "takes out control characters")
    gutenberg: bool = knob(True, "", "takes off header, licence and footer of Project Gutenberg")
    wiki: bool = knob(True, "", "takes out remains of wiki markup in articles that WikiExtractor made")

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("extractor", self.extractor, EXTRACTORS),
            ("normalization", self.normalization, FORMS),
        ):
            if value not in allowed:
                raise ValueError(f"extract.{name}={value!r} must be one of {', '.join(map(repr, allowed))}")
        for name in ("largest", "deepest", "tags", "seconds", "memory"):
            if not getattr(self, name) > 0:
                raise ValueError(f"extract.{name}={getattr(self, name)!r} must be more than 0")


def extract(documents: pa.Table, knobs: Extract) -> tuple[pa.Table, Tally]:
    """The documents with clean text, in the columns of ``documents.COLUMNS``.

    Documents without text are dropped. Pages that are too large or too deep, and those that the extractor cannot do,
    are faults too, each with its file and place; those beyond ``source.NAMED`` of a part are counted only.

    Args:
        documents: of ``read``; the columns kind, content, charset and votes end here.
        knobs: what is done, and limits.

    Raises:
        ValueError: the extractor's package is not installed.
    """
    tally, named = Tally(), 0
    kept: list[bool] = []
    texts: list[str] = []
    for row in documents.to_pylist():
        try:
            raw = _page(row, knobs, tally) if row.get("kind") == "html" else row["text"]
            text = cleaned(raw, knobs, tally)
            reason = "" if text.strip() else "no text"
        except _Refused as refused:
            text, reason = "", refused.what
            named += 1
            if named <= NAMED:
                tally.faults.append(Fault(row["file"], row["place"], str(refused)))
        kept.append(not reason)
        if reason:
            begin = (row.get("content") or b"")[:2000].decode("utf-8", "replace")
            tally.drop(reason, row["id"], begin or row["text"])
        else:
            texts.append(text)
    if named > NAMED:
        more = f"{named - NAMED} more pages of this part were left out; they are counted, but not named"
        tally.faults.append(Fault(documents["file"][0].as_py(), 0, more))
    left = documents.filter(pa.array(kept, pa.bool_()))
    left = left.drop_columns([name for name in _RAW if name in left.column_names])
    return columns.with_column(left, "text", pa.array(texts, pa.large_string())), tally


def cleaned(text: str, knobs: Extract, tally: Tally) -> str:
    """A text as the knobs ask for it; that of a book or article without what is not its own, which is counted."""
    text = clean.normalized(text, knobs.normalization, knobs.controls)
    for name, wanted, function in (
        ("Project Gutenberg", knobs.gutenberg, clean.without_gutenberg),
        ("wiki", knobs.wiki, clean.without_wiki),
    ):
        if wanted and (shorter := function(text)) != text:
            tally.count(f"{name}: documents cut")
            tally.count(f"{name}: characters cut", len(text) - len(shorter))
            text = shorter
    return text


class _Refused(Exception):
    """A page that is left out."""

    def __init__(self, what: str, reason: str):
        super().__init__(reason)
        self.what = what


def _page(row: dict[str, object], knobs: Extract, tally: Tally) -> str:
    content, charset = row["content"], row["charset"]
    assert isinstance(content, bytes) and isinstance(charset, str)
    if len(content) > knobs.largest:
        raise _Refused("page too large", f"the page has {len(content)} bytes, more than the knob largest")
    page, wrong = formats.decode(content, charset)
    if wrong:
        tally.count("pages neither in UTF-8 nor in a declared encoding")
    if (deep := depth(page)) > knobs.deepest:
        raise _Refused("page too deep", f"the page nests {deep} elements, more than the knob deepest")
    if (tags := page.count("<")) > knobs.tags:
        raise _Refused("page too large", f"the page has {tags} tags, more than the knob tags")
    settings = Settings(knobs.extractor, knobs.comments, knobs.tables, knobs.seconds, knobs.memory)
    try:
        return _extractor(settings, os.getpid()).extract(page)
    except Stopped as stopped:
        raise _Refused("extractor stopped", str(stopped)) from None


# Elements that have no end tag, or may leave it out, do not nest: a parser ends them by itself.
_FLAT = (
    "area|base|body|br|col|colgroup|dd|dt|embed|frame|head|hr|html|img|input|li|link|meta|optgroup|option|p|param|rp|rt|"
    "source|tbody|td|tfoot|th|thead|tr|track|wbr"
)
# A comment or script without an end goes to the end of the page; so each byte is looked at once.
_TAG = re.compile(
    r"<!--(?:.*?-->|.*)|<(script|style|textarea|title)\b(?:.*?</\1\s*>|.*)"
    rf"|<(?P<end>/?)(?!(?:{_FLAT})\b)(?P<name>[a-z])",
    re.DOTALL | re.IGNORECASE,
)


def depth(page: str) -> int:
    """How deep the elements of a page nest, by its tags alone; a bound before any parser sees the page."""
    deepest = now = 0
    for tag in _TAG.finditer(page):
        if tag["name"]:
            now = max(0, now - 1) if tag["end"] else now + 1
            deepest = max(deepest, now)
    return deepest


@functools.lru_cache(maxsize=1)
def _extractor(settings: Settings, parent: int) -> Extractor:
    """The child process of this process. It serves many parts, because it takes a second to start."""
    del parent  # a process that was forked from this one must not write into the same pipes
    return Extractor(settings)
