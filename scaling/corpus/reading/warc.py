"""Records of WARC (0.18 to 1.1), WET and ARC files, and the documents in them.

The framing is read here, because a record with a wrong length, a cut-off member or a quirk of a header must cost that
record alone, and must be named with its offset. FastWARC 2.0 stops at such a record or passes over it silently, reads
no ARC, and gives no offsets inside of a gzip member; warcio stops at it. The formats are those of ISO 28500:2017 and of
"Arc File Format" (Internet Archive, 1996).
"""

import io
import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from scaling.corpus.reading import formats
from scaling.corpus.reading.formats import Stream
from scaling.corpus.reading.source import Row, Source

HEADER = 1 << 16  # longest header of a record, bytes
_LINE = 1 << 20  # bytes of a line looked at when the next record is searched
_VERSION = re.compile(rb"WARC/\d+\.\d+[ \t]*\r?\n")
# URL, IP address, date, type (with the further fields of version 2), length. The URL may have spaces.
_ARC = re.compile(rb"([a-z][a-z0-9+.-]*:[^\r\n]*?) (\S+) (\d{8,}) (\S+)(?: \S+)*? (\S+)\r?\n", re.IGNORECASE)
_STATUS = re.compile(rb"HTTP/\S+[ \t]+(\d{3})")
_BLANK = b"\r\n \t\0"
_HTML = ("text/html", "application/xhtml+xml")
_DOCUMENTS = ("response", "resource", "conversion")
_OTHERS = ("warcinfo", "request", "metadata", "revisit", "continuation")


class Record(NamedTuple):
    """A record as it is framed."""

    place: int  # byte offset of its header in the content of the file
    fields: dict[str, str]  # of its header, with names in lower case
    content: bytes


def rows(stream: Stream, source: Source) -> Iterator[Row]:
    """Yields the documents: pages (responses with status 200, resources) and extracted text (conversions)."""
    for record in records(stream, source):
        kind = record.fields.get("warc-type", "").lower()
        if kind not in _DOCUMENTS:
            source.tally.count(f"records of type {kind if kind in _OTHERS else 'unknown'}")
        elif (row := _document(record, source)) is not None:
            yield row


def records(stream: Stream, source: Source) -> Iterator[Record]:
    """Yields the records; what belongs to none is a fault of the source, and the search goes on with the next one."""
    start: re.Pattern[bytes] | None = None
    while True:
        at = stream.offset
        line = stream.line(HEADER)
        if not line:
            if (damage := stream.resume()) is None:
                return
            source.damaged(at, damage)
            continue
        if at == 0:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip(_BLANK):
            continue
        if start is None:
            start = _ARC if _ARC.match(line, 0, HEADER) else _VERSION
        found = start.match(line, 0, HEADER)
        if not found:
            stream.unread(line)
            source.fault(at, "no record", f"{_until(start, stream, 0)[1]} bytes belong to no record")
            continue
        fields = _arc_fields(found) if start is _ARC else _warc_fields(line, stream)
        if fields is None:
            source.fault(at, "no record", f"the header of the record has no end in {HEADER} bytes")
        elif (content := _content(start, stream, source, at, fields)) is not None:
            yield Record(at, fields, content)


def _arc_fields(found: re.Match[bytes]) -> dict[str, str]:
    url, _, _, kind, length = (part.decode("utf-8", "replace") for part in found.groups())
    record = "warcinfo" if url.startswith("filedesc:") else "response"
    return {"warc-type": record, "warc-target-uri": url, "content-type": kind, "content-length": length}


def _warc_fields(version: bytes, stream: Stream) -> dict[str, str] | None:
    """The fields of a header up to its blank line; None if it is cut off or too long.

    ClueWeb09 (WARC 0.18) has line feeds inside of values, so a line without a name goes on with the value before, and a
    bare line feed among lines that end with CR LF is no end if a field follows.
    """
    fields: dict[str, str] = {}
    name, size, crlf = "", 0, version.endswith(b"\r\n")
    while size < HEADER:
        line = stream.line(HEADER)
        size += len(line)
        if not line:
            return None
        if line == b"\n" and crlf:
            following = stream.line(HEADER)
            stream.unread(following)
            if re.match(rb"(WARC-|Content-)[A-Za-z-]+:", following, re.IGNORECASE):
                continue
        text = line.decode("utf-8", "replace").strip()
        if not text:
            return fields
        key, colon, value = text.partition(":")
        if colon and re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", key) and not line[:1].isspace():
            name = key.lower()
            fields[name] = value.strip()
        elif name:
            fields[name] += text
    return None


def _content(start: re.Pattern[bytes], stream: Stream, source: Source, at: int, fields: dict[str, str]) -> bytes | None:
    """The content of a record, up to the next record where its length is wrong; None if it is too long."""
    declared, limit = fields.get("content-length", ""), source.knobs.longest
    length = int(declared) if re.fullmatch(r"\d{1,18}", declared) else None
    if length is not None and length > limit:
        skipped = _until(start, stream, 0)[1]
        source.lost(at, "too long", f"the record of {length} bytes is longer than the knob longest ({limit})")
        if skipped < length:
            source.fault(at, "wrong length", f"the record says that it has {length} bytes, and {skipped} are there")
        return None
    content = stream.read(length or 0)
    if len(content) == length and _ends(start, stream):
        return content
    stream.unread(content)
    content, size = _until(start, stream, limit)
    following = stream.line(HEADER)
    stream.unread(following)
    cut = length is not None and size < length and not following
    there = f"{size} are there" + (f", of which {limit} were kept" if size > limit else "")
    declared = declared if length is not None else "an unknown number of"
    source.fault(at, "cut off" if cut else "wrong length", f"the record says that it has {declared} bytes, and {there}")
    return content.rstrip(b"\r\n")


def _ends(start: re.Pattern[bytes], stream: Stream) -> bool:
    """Whether only blank lines lie before the next record, a damage or the end. If so, they are read."""
    blank = b""
    while (line := stream.line(_LINE)) and not line.strip(_BLANK):
        blank = (blank + line)[-_LINE:]
    good = not line or bool(start.match(line, 0, HEADER))
    stream.unread(line if good else blank + line)
    return good


def _until(start: re.Pattern[bytes], stream: Stream, keep: int) -> tuple[bytes, int]:
    """Reads to the next record that begins at a line.

    Returns:
        the first ``keep`` bytes that were read, and the number of all.
    """
    kept, size, fresh = bytearray(), 0, True
    while line := stream.line(_LINE):
        if fresh and start.match(line, 0, HEADER):
            stream.unread(line)
            break
        fresh = line.endswith(b"\n")
        kept += line[: max(0, keep - len(kept))]
        size += len(line)
    return bytes(kept), size


def _document(record: Record, source: Source) -> Row | None:
    fields, body = record.fields, record.content
    declared = fields.get("content-type", "")
    # Old crawlers declare the type of the page. The text of a WET file may begin with "HTTP/2", too.
    response = fields["warc-type"].lower() == "response" and _STATUS.match(body)
    if declared.startswith("application/http") or response:
        page = _http(record, source)
        if page is None:
            return None
        declared, body = page
    mime, _, parameters = declared.partition(";")
    mime = mime.strip().lower()
    charset = re.search(r"charset\s*=\s*[\"']?([\w.:-]+)", parameters, re.IGNORECASE)
    if mime in ("", "no-type", "application/octet-stream"):
        mime = "text/html" if re.match(rb"\s*<(!doctype\s+html|html|head|body)", body, re.IGNORECASE) else mime
    if mime not in (*_HTML, "text/plain"):
        source.tally.count("records that are neither text nor HTML")
        return None
    id = fields.get("warc-record-id", "").strip("<>").removeprefix("urn:uuid:")
    row = Row(record.place, id=id if source.knobs.id_key else "", url=fields.get("warc-target-uri", "").strip("<>"))
    if key := source.knobs.votes_key:
        row = row._replace(votes=source.votes(record.place, fields.get(key.lower())))
    encoding = charset[1] if charset else ""
    if mime in _HTML:
        return row._replace(kind="html", content=body, charset=encoding)
    return source.text(row, body, encoding)


def _http(record: Record, source: Source) -> tuple[str, bytes] | None:
    """The content type and the decoded body of a response; None unless its status is 200."""
    head = re.match(_STATUS.pattern + rb"[^\n]*\n(.*?)(?:(?<=\n)\r?\n|\Z)", record.content, re.DOTALL)
    if not head:
        source.lost(record.place, "no HTTP", "the response does not begin with a status of HTTP")
        return None
    if head[1] != b"200":
        source.tally.count("responses with a status other than 200")
        return None
    fields: dict[str, str] = {}
    for line in head[2].decode("latin-1").splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        # Codings may stand in several fields, in the order in which they were applied.
        several = name.lower() in fields and name.lower().endswith("-encoding")
        fields[name.lower()] = f"{fields[name.lower()]},{value}" if several else value
    body = record.content[head.end() :]
    if "chunked" in fields.get("transfer-encoding", "").lower():
        body = _joined(body, record, source)
    for encoding in reversed(fields.get("content-encoding", "").lower().split(",")):
        body = _plain(body, encoding.strip(), record, source)
    return fields.get("content-type", ""), body


def _joined(body: bytes, record: Record, source: Source) -> bytes:
    """A body without the marks of its chunks. Many crawlers store bodies without them, but leave the field there."""
    parts, at = [], 0
    while mark := re.compile(rb"([0-9a-fA-F]{1,8})[ \t]*(?:;[^\n]*)?\r?\n").match(body, at):
        size = int(mark[1], 16)
        parts.append(body[mark.end() : mark.end() + size])
        at = mark.end() + size
        if at > len(body):
            source.fault(
                record.place, "cut off", f"the last chunk of the body says {size} bytes; {at - len(body)} lack"
            )
            break
        if size == 0:
            break
        at += 2 if body[at : at + 2] == b"\r\n" else 1 if body[at : at + 1] == b"\n" else 0
    else:
        if not parts:
            return body
        source.fault(record.place, "wrong chunks", f"the body has no chunk at its byte {at}; the rest is kept as it is")
        parts.append(body[at:])
    return b"".join(parts)


def _plain(body: bytes, encoding: str, record: Record, source: Source) -> bytes:
    """A body that is not compressed. Many crawlers store it so, but leave the field there; it is kept as it is then."""
    limit = source.knobs.longest
    if encoding in ("gzip", "x-gzip") and body.startswith(b"\x1f\x8b"):
        decoder = zlib.decompressobj(31)
    elif encoding == "deflate" and not re.match(rb"\s*<", body):
        decoder = zlib.decompressobj(15 if body[:1] == b"\x78" else -15)
    elif encoding == "br" and not re.match(rb"\s*<", body):
        return _brotli(body, record, source)
    elif encoding == "zstd" and body.startswith(formats.ZSTD):
        return _zstd(body, record, source)
    else:
        return body
    plain = bytearray()
    try:
        while not decoder.eof and len(plain) <= limit:
            piece = decoder.decompress(body, formats.PIECE)
            plain += piece
            body = decoder.unconsumed_tail
            if not body and len(piece) < formats.PIECE:
                break
    except zlib.error as error:
        source.fault(record.place, "damaged body", f"the {encoding} data of the body is damaged ({error})")
        return bytes(plain)
    if len(plain) > limit:
        source.fault(record.place, "too long", f"the body is longer than the knob longest ({limit}); it is cut there")
    elif not decoder.eof:
        source.fault(record.place, "cut off", f"the {encoding} data of the body is cut off")
    return bytes(plain[:limit])


def _brotli(body: bytes, record: Record, source: Source) -> bytes:
    try:
        import brotli
    except ImportError:
        raise ValueError("a page is compressed by Brotli; pip install 'scaling[data]'") from None
    decoder, plain = brotli.Decompressor(), bytearray()
    try:
        for at in range(0, len(body), 1 << 10):
            plain += decoder.process(body[at : at + (1 << 10)])
            if len(plain) > source.knobs.longest:
                source.fault(record.place, "too long", "the body is longer than the knob longest; it is cut there")
                break
    except brotli.error:
        source.fault(record.place, "damaged body", "the Brotli data of the body is damaged")
    return bytes(plain[: source.knobs.longest])


def _zstd(body: bytes, record: Record, source: Source) -> bytes:
    limit, plain = source.knobs.longest, bytearray()
    for piece in formats.decoded(io.BytesIO(body)):
        if isinstance(piece, formats.Damage):
            source.fault(record.place, "damaged body", piece.reason)
        else:
            plain += piece
        if len(plain) > limit:
            source.fault(record.place, "too long", "the body is longer than the knob longest; it is cut there")
            break
    return bytes(plain[:limit])
