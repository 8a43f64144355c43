"""Small WARC and ARC files, good and broken."""

import gzip

PAGE = (
    b"<html><head><title>Tea</title></head><body><article><h1>Tea</h1>"
    + b"".join(b"<p>Sentence number %d says something of its own about tea.</p>" % n for n in range(12))
    + b"</article></body></html>"
)


def http(body: bytes = PAGE, fields: str = "Content-Type: text/html; charset=utf-8", status: int = 200) -> bytes:
    return f"HTTP/1.1 {status} Some reason\r\n{fields}\r\n\r\n".encode() + body


def record(
    number: int,
    content: bytes | None = None,
    *,
    kind: str = "response",
    mime: str = "application/http; msgtype=response",
    length: int | str | None = None,
    more: str = "",
    version: str = "1.0",
) -> bytes:
    content = http() if content is None else content
    head = (
        f"WARC/{version}\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:record-{number}>\r\n"
        f"WARC-Target-URI: http://site/{number}\r\nContent-Type: {mime}\r\n{more}"
        f"Content-Length: {len(content) if length is None else length}\r\n\r\n"
    )
    return head.encode() + content + b"\r\n\r\n"


def compressed(*records: bytes) -> bytes:
    """Each record in a gzip member of its own, as crawlers do."""
    return b"".join(gzip.compress(one, mtime=0) for one in records)


def arc(*pages: tuple[str, bytes, int | str | None]) -> bytes:
    """An ARC file, of (URL, content, declared length)."""
    version = b"1 0 Maker\nURL IP-address Archive-date Content-type Archive-length\n"
    parts = [f"filedesc://a.arc 0.0.0.0 20140216050221 text/plain {len(version)}\n".encode() + version + b"\n"]
    for url, content, length in pages:
        length = len(content) if length is None else length
        parts.append(f"{url} 127.0.0.1 20140216050221 text/html {length}\n".encode() + content + b"\n")
    return b"".join(parts)
