"""Bytes of input files, plain or compressed, as a stream that goes on after damage.

The first bytes of a file say how it is compressed (gzip, bzip2, zstd), whatever its name ends in. Nothing is ever held
whole: memory is bounded by a block, and by the longest piece that a reader asks for.
"""

import bz2
import re
import zlib
from collections.abc import Callable, Generator, Iterator
from typing import IO, Any, NamedTuple

ZSTD = b"\x28\xb5\x2f\xfd"  # how a frame of zstd begins; frames that are to be skipped begin otherwise
BLOCK = 1 << 16  # stored bytes read at a time
PIECE = 1 << 20  # bytes of content made at a time, as far as the codec lets its output be bounded


class Damage(NamedTuple):
    """A place of a stored file where content is lost."""

    stored: int  # byte offset in the file as it is stored
    reason: str


class _Codec(NamedTuple):
    """How one kind of compression is undone."""

    name: str
    start: re.Pattern[bytes]  # first bytes of a member (gzip), stream (bzip2) or frame (zstd)
    new: Callable[[], Any]
    feed: int  # bytes of input at a time
    bounded: bool  # whether the decoder takes a limit of its output


def _zstd() -> Any:
    try:
        import zstandard
    except ImportError:
        raise ValueError("reading .zst files needs zstandard; pip install 'scaling[data]'") from None
    return zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()


# A kilobyte of zstd may become 33 MB, and its decoder takes no limit of its output; so it is fed little at a time.
_CODECS = (
    _Codec(
        "gzip",
        re.compile(rb"\x1f\x8b\x08[\x00-\x1f]"),
        lambda: zlib.decompressobj(31),
        BLOCK,
        True,
    ),
    _Codec("bzip2", re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"), bz2.BZ2Decompressor, BLOCK, True),
    _Codec("zstd", re.compile(re.escape(ZSTD) + rb"|[\x50-\x5f]\x2a\x4d\x18"), _zstd, 1 << 10, False),
)
_START = 10  # bytes that the longest pattern of a start needs


def decoded(raw: IO[bytes]) -> Iterator[bytes | Damage]:
    """Yields the content of a stored file in pieces, and a ``Damage`` at each place where some of it is lost.

    Reading goes on at the next gzip member, bzip2 stream or zstd frame. Common Crawl compresses each record by itself,
    so one damaged record does not hide the others.

    Args:
        raw: the file; it can be sought in.
    """
    head = raw.read(BLOCK)
    codec = next((codec for codec in _CODECS if codec.start.match(head)), None)
    if codec is None:
        while head:
            yield head
            head = raw.read(BLOCK)
        return
    at: int | None = 0
    while at is not None:
        end = yield from _member(codec, raw, at)
        if end is None:
            at = _next_member(codec, raw, at + 1)
        else:
            at = _next_member(codec, raw, end)
            if at != end and (lost := _not_zero(raw, end, at)):
                yield Damage(end, f"{lost} bytes are no {codec.name}")


def _member(codec: _Codec, raw: IO[bytes], at: int) -> Generator[bytes | Damage, None, int | None]:
    """Yields the content of the member at an offset, and returns the offset of its end; None if it has no good end."""
    raw.seek(at)
    decoder, data, done = codec.new(), b"", at
    while not decoder.eof:
        if not data:
            data = raw.read(codec.feed)
            done += len(data)
        if not data:
            yield Damage(done, f"the {codec.name} data that begins at byte {at} is cut off")
            return done
        try:
            yield from _pieces(codec, decoder, data)
        except Exception as error:  # zlib.error, OSError and zstandard.ZstdError have no base class in common
            yield Damage(at, f"the {codec.name} data that begins here is damaged ({error})")
            return None
        data = b""
    return done - len(decoder.unused_data)


def _pieces(codec: _Codec, decoder: Any, data: bytes) -> Iterator[bytes]:
    """The content of some stored bytes, in pieces of at most ``PIECE`` where the decoder takes a limit."""
    if not codec.bounded:
        yield decoder.decompress(data)
        return
    piece = decoder.decompress(data, PIECE)
    yield piece
    while not decoder.eof and (len(piece) == PIECE or _rest(decoder)):
        piece = decoder.decompress(_rest(decoder), PIECE)
        yield piece


def _rest(decoder: Any) -> bytes:
    """Input that a decoder did not take yet; that of bzip2 keeps it inside."""
    return decoder.unconsumed_tail if hasattr(decoder, "unconsumed_tail") else b""


def _next_member(codec: _Codec, raw: IO[bytes], at: int) -> int | None:
    """The offset of the next start of a member, from an offset on."""
    raw.seek(at)
    window = b""
    while block := raw.read(BLOCK):
        window += block
        if found := codec.start.search(window):
            return at + found.start()
        at += max(0, len(window) - _START)
        window = window[-_START:]
    return None


def _not_zero(raw: IO[bytes], start: int, end: int | None) -> int:
    """How many bytes lie between two members; 0 if all of them are zero, as padding is."""
    raw.seek(start)
    length, zero = 0, True
    while block := raw.read(BLOCK if end is None else min(BLOCK, end - start - length)):
        length += len(block)
        zero = zero and not block.strip(b"\0")
    return 0 if zero else length


class Stream:
    """Content of a file, read in order.

    ``read`` and ``line`` end at a damage as they do at the end of the file. ``resume`` tells the two apart, and lets
    reading go on after the damage.

    Attributes:
        offset: how many bytes of content lie before the next one that is read; lost ones are not in it.
    """

    def __init__(self, raw: IO[bytes]):
        self.offset = 0
        self._pieces = decoded(raw)
        self._buffer = b""
        self._at = 0  # of the next byte in the buffer
        self._damage: Damage | None = None

    def read(self, size: int) -> bytes:
        """The next bytes; fewer than ``size`` before a damage or the end."""
        while len(self._buffer) - self._at < size and self._fill():
            pass
        return self._take(size)

    def line(self, limit: int) -> bytes:
        """The rest of a line with its end, or the first ``limit`` bytes of a longer one; b"" as ``read``."""
        searched = 0
        while True:
            end = self._buffer.find(b"\n", self._at + searched, self._at + limit)
            if end >= 0:
                return self._take(end + 1 - self._at)
            searched = len(self._buffer) - self._at
            if searched >= limit or not self._fill():
                return self._take(limit)

    def unread(self, data: bytes) -> None:
        """Puts bytes back; they are read next."""
        self._buffer = data + self._buffer[self._at :]
        self._at = 0
        self.offset -= len(data)

    def resume(self) -> Damage | None:
        """The damage that ended the last ``read`` or ``line``; None at the end of the file."""
        damage, self._damage = self._damage, None
        return damage

    def _fill(self) -> bool:
        piece = None if self._damage else next(self._pieces, None)
        if isinstance(piece, Damage):
            self._damage = piece
        if not isinstance(piece, bytes):
            return False  # an empty piece is not the end
        self._buffer = self._buffer[self._at :] + piece
        self._at = 0
        return True

    def _take(self, size: int) -> bytes:
        taken = self._buffer[self._at : self._at + size]
        self._at += len(taken)
        self.offset += len(taken)
        return taken


def decode(data: bytes, charset: str = "") -> tuple[str, str]:
    """The text of some bytes, and a sentence on what is wrong ("" = they are UTF-8, or what the container declares).

    Text with few bytes that are not UTF-8, at most one to ten characters beyond ASCII that are, counts as UTF-8.
    Other text is read by the declared encoding, then by that of a page's ``<meta>``, or else by the one that uchardet
    finds. Bytes that fit none become U+FFFD. Encodings are those of the web (WHATWG), and no others that Python has.

    Args:
        data: of a whole document.
        charset: that its container declares; "" = none.
    """
    from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

    try:
        return data.decode("utf-8-sig"), ""
    except UnicodeDecodeError as error:
        where = f"byte 0x{data[error.start]:02x} at offset {error.start} is not UTF-8"
    text = data.decode("utf-8", "replace")
    bad = text.count("\ufffd")
    if len(text) - len(text.encode("ascii", "ignore")) - bad >= 10 * bad:
        return text.removeprefix("\ufeff"), f"{where}; bytes read as U+FFFD: {bad}"
    declared = map_encoding_to_html5(charset, fallback_utf8=False) if charset else None
    found = detect_encoding(data, from_html_meta=True) or "utf-8"
    for name, wrong in ((declared, ""), (found, f"{where}; it was read as {found}")):
        try:
            if name:
                return data.decode(name).removeprefix("\ufeff"), wrong
        except (LookupError, UnicodeDecodeError):  # LookupError: Python lacks some encodings of the web
            continue
    try:
        return data.decode(found, "replace"), f"{where}, and not all of it is {found}"
    except LookupError:
        return text, where


def is_binary(data: bytes) -> bool:
    """Whether the beginning of a file that is not UTF-16 or UTF-32 has bytes that no text has."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")):
        return False
    head = data[: 1 << 13]
    control = len(head) - len(head.translate(None, bytes([*range(9), *range(14, 27), *range(28, 32), 127])))
    return b"\0" in head or control > len(head) // 10
