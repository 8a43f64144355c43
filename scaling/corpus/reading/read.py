"""Reads input files into tables of documents: text, JSON Lines, Parquet, WARC, ARC and WET, plain or compressed.

A file is read as a stream, so memory does not grow with it. Bad input is counted and named in the tally, and the rest
of the file is read.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from scaling import json_text
from scaling.corpus import documents
from scaling.corpus.outcome import Tally
from scaling.corpus.reading import warc
from scaling.corpus.reading.formats import Stream
from scaling.corpus.reading.source import Read, Row, Source
from scaling.data import sources

COMPRESSED = (".gz", ".bz2", ".zst")
FORMATS = (".txt", ".jsonl", ".parquet", ".warc", ".arc", ".wet")
_ROWS = 256  # of a Parquet file decoded at a time

# What a document has until the stage ``extract``, beside ``documents.COLUMNS``: HTML is in ``content``, its ``text`` is
# empty; the ``text`` of any other document is there already. ``votes`` is there if the knob ``votes_key`` is set.
RAW = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),  # "html" or "text"
        pa.field("content", pa.large_binary(), nullable=False),
        pa.field("charset", pa.string(), nullable=False),  # declared by the container; "" = none
    ]
)
VOTES = pa.schema([pa.field("votes", pa.float64(), nullable=False)])  # not a number = unknown


def find(pattern: str) -> list[str]:
    """The sorted files of a path or glob, local or remote; empty ones too, because they are faults that are named.

    Raises:
        FileNotFoundError: nothing matches.
        ValueError: a directory, or a file of an unknown format.
    """
    files = [file for file, _ in sources.matching(pattern)]
    for file in files:
        if not _plain(file).endswith(FORMATS):
            raise ValueError(
                f"{file}: unknown format; names end in {', '.join(FORMATS)}, then perhaps in {', '.join(COMPRESSED)}"
            )
    return files


def names(files: Sequence[str]) -> dict[str, str]:
    """A name for each file of a data set: its path from the folder that all have in common.

    Names go into the ids of documents, so they do not depend on where the data set lies.
    """
    folders = [file.split("/")[:-1] for file in files]
    common = next((n for n, parts in enumerate(zip(*folders, strict=False)) if len(set(parts)) > 1), None)
    common = min(map(len, folders), default=0) if common is None else common
    return {file: "/".join(file.split("/")[common:]) for file in files}


def read(path: str, knobs: Read, tally: Tally, name: str = "") -> Iterator[pa.Table]:
    """Yields the documents of one file in tables of about ``knobs.part_bytes`` of content.

    The tables have the columns of ``documents.COLUMNS`` and ``RAW``, and ``VOTES`` if the knob ``votes_key`` is set.
    ``place`` is the byte offset in the content of WARC, ARC and WET, the line of JSON Lines and the row of Parquet,
    both from 1, and 0 for a text file, which is one document. ``id`` is the document's own, or ``NAME:PLACE``;
    ``scaling.corpus.reading.ids`` finds own ids that are not unique.

    Args:
        path: of ``find``.
        knobs: which fields are read, and limits.
        tally: where documents, those that bad input costs too, faults, and records that are no documents, are counted;
            complete when the iteration has ended.
        name: of the file in ids and faults, unique in the corpus: that of the data set, and of the file in it
            (``names``); "" = the last part of the path.

    Raises:
        OSError: the file cannot be read at all, or the store fails while it is read.
        ValueError: a needed package is not installed.
    """
    source = Source(name or path.rsplit("/", 1)[-1], knobs, tally)
    fs, inner = sources.filesystem(path)
    with fs.open(inner, "rb") as raw:
        if not raw.read(1):
            source.fault(0, "empty file", "the file is empty")
            return
        raw.seek(0)
        yield from _tables(_rows(path, raw, source), source)
    source.end()


def _plain(file: str) -> str:
    """The name without the ending of its compression."""
    return next((file.removesuffix(end) for end in COMPRESSED if file.endswith(end)), file)


def _rows(path: str, raw: IO[bytes], source: Source) -> Iterator[Row]:
    plain = _plain(path)
    if plain.endswith(".parquet"):
        return _parquet(raw, source)
    read_by = _text if plain.endswith(".txt") else _json_lines if plain.endswith(".jsonl") else warc.rows
    return read_by(Stream(raw), source)


def _tables(rows: Iterable[Row], source: Source) -> Iterator[pa.Table]:
    found: list[Row] = []
    size = 0
    for row in rows:
        source.tally.documents_in += 1
        if not row.content.strip() and not row.text.strip():
            source.tally.drop("empty", row.id or f"{source.name}:{row.place}", row.text)
            continue
        found.append(row)
        size += len(row.content) + len(row.text.encode())
        if size >= source.knobs.part_bytes:
            yield _table(found, source)
            found, size = [], 0
    if found:
        yield _table(found, source)


def _table(rows: list[Row], source: Source) -> pa.Table:
    more = [*RAW, *(VOTES if source.knobs.votes_key else ())]
    columns: dict[str, list[Any]] = {name: [getattr(row, name) for row in rows] for name in Row._fields}
    columns["id"] = [row.id or f"{source.name}:{row.place}" for row in rows]
    columns["file"] = [source.name] * len(rows)
    return documents.table(columns, pa.schema(more))


def _text(stream: Stream, source: Source) -> Iterator[Row]:
    """The file is one document."""
    limit = source.knobs.longest
    data = bytearray()
    while len(data) <= limit:
        data += (piece := stream.read(limit + 1 - len(data)))
        if not piece:
            if (damage := stream.resume()) is None:
                break
            source.damaged(stream.offset, damage)
    if len(data) > limit:
        source.lost(0, "too long", f"the document is longer than the knob longest ({limit} bytes)")
    elif (row := source.text(Row(0), bytes(data))) is not None:
        yield row


def _json_lines(stream: Stream, source: Source) -> Iterator[Row]:
    limit, number = source.knobs.longest, 0
    while True:
        line = stream.line(limit)
        if not line:
            if (damage := stream.resume()) is None:
                return
            source.damaged(number + 1, damage)
            continue
        number += 1
        if len(line) == limit and not line.endswith(b"\n"):
            length = len(line)
            while line and not line.endswith(b"\n"):
                line = stream.line(limit)
                length += len(line)
            source.lost(number, "too long", f"the line of {length} bytes is longer than the knob longest ({limit})")
        elif line.strip():
            row = _json(line, number, source)
            if row is not None:
                yield row


def _json(line: bytes, number: int, source: Source) -> Row | None:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        byte = f"byte 0x{line[error.start]:02x} at offset {error.start} of the line is not UTF-8"
        source.fault(number, "not UTF-8", f"{byte}; such bytes are read as U+FFFD")
        text = line.decode("utf-8", "replace")
    try:
        record = json_text.parse(text, f"line {number}")
    except ValueError as error:
        source.lost(number, "not JSON", str(error))
        return None
    if not isinstance(record, dict):
        source.lost(number, "not JSON", f"line {number} is no JSON object")
        return None
    return _fields(record, number, source)


def _fields(record: dict[str, Any], place: int, source: Source) -> Row | None:
    """The row of a JSON object or a row of Parquet."""
    knobs = source.knobs
    text = record.get(knobs.text_key)
    if not isinstance(text, str | bytes):
        there = "is no text" if knobs.text_key in record else f"is not there; there are {', '.join(map(repr, record))}"
        source.lost(place, "no text", f"the field {knobs.text_key!r} {there[:200]}")
        return None
    id, url = record.get(knobs.id_key), record.get(knobs.url_key)
    row = Row(
        place,
        id=sources.text_of(str(id), knobs.id_key, "") if isinstance(id, str | int) else "",
        url=sources.text_of(url, knobs.url_key, "") if isinstance(url, str) else "",
    )
    if knobs.votes_key:
        row = row._replace(votes=source.votes(place, record.get(knobs.votes_key)))
    if isinstance(text, str):
        text = sources.text_of(text, knobs.text_key, "")
        return (
            row._replace(kind="html", content=text.encode(), charset="utf-8") if knobs.html else row._replace(text=text)
        )
    return row._replace(kind="html", content=text) if knobs.html else source.text(row, text)


def _parquet(raw: IO[bytes], source: Source) -> Iterator[Row]:
    knobs = source.knobs
    try:
        file = pq.ParquetFile(raw)
    except (pa.ArrowException, OSError) as error:
        source.fault(0, "no Parquet", f"the file is no whole Parquet file ({str(error).splitlines()[0]})")
        return
    there = file.schema_arrow.names
    keys = dict.fromkeys((knobs.text_key, knobs.id_key, knobs.url_key, knobs.votes_key))
    columns = [name for name in keys if there.count(name) == 1]
    for name in keys:
        if there.count(name) > 1 and name != knobs.text_key:
            source.fault(0, "column twice", f"the file has {there.count(name)} columns {name!r}; none of them is read")
    if there.count(knobs.text_key) != 1:
        reason = f"the file has {there.count(knobs.text_key)} columns {knobs.text_key!r}; it has {', '.join(there)}"
        source.fault(0, "no text", reason[:400])
        return
    row = 0
    for group in range(file.num_row_groups):
        done, end = row, row + file.metadata.row_group(group).num_rows
        try:
            for batch in file.iter_batches(batch_size=_ROWS, row_groups=[group], columns=columns):
                for cells in zip(*(batch.column(name) for name in columns), strict=True):
                    done += 1
                    if (found := _cells(columns, cells, done, source)) is not None:
                        yield found
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            source.fault(done + 1, "damaged Parquet", f"rows {done + 1} to {end} cannot be read ({reason})")
        row = end


def _cells(columns: list[str], cells: Sequence[Any], row: int, source: Source) -> Row | None:
    """The document of a row, unless its text is too long. A column of texts may have bytes that are not UTF-8.

    A cell that Python has no value for, such as a date after the year 9999, counts as one that is not there.
    """
    record: dict[str, Any] = {}
    for name, cell in zip(columns, cells, strict=True):
        try:
            record[name] = cell.as_py()
        except UnicodeDecodeError as error:
            record[name] = bytes(error.object)
            if name != source.knobs.text_key:
                record[name] = record[name].decode("utf-8", "replace")
        except (ArithmeticError, ValueError, pa.ArrowException) as error:
            record[name] = None
            source.fault(row, "unreadable cell", f"the column {name!r} cannot be read here ({error})"[:200])
    text = record[source.knobs.text_key]
    if isinstance(text, str | bytes) and (size := len(text.encode() if isinstance(text, str) else text)) > (
        limit := source.knobs.longest
    ):
        source.lost(row, "too long", f"the text of {size} bytes is longer than the knob longest ({limit})")
        return None
    return _fields(record, row, source)
