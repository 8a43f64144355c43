"""Text sources: reads the documents of a path or glob, local or remote.

The end of a name gives the format: ``.txt`` and ``.txt.gz`` (a file is a document, read whole), ``.jsonl``
and ``.jsonl.gz`` (a line is a document), ``.parquet`` (a row is a document; needs the extra ``scaling[data]``).
Remote paths (``gs://``, ``s3://``, ...) are read through fsspec.
"""

import fnmatch
import gzip
import json
import os
import re
import shlex
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, NamedTuple

import fsspec
from etils import epath

from scaling import json_text
from scaling.object_store import is_remote
from scaling.paths import is_url

FORMATS = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".parquet")
_PARQUET_ROWS = 1024  # rows decoded at a time


class Document(NamedTuple):
    """A text, and its control code; "" = none."""

    text: str
    control: str = ""


def filesystem(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec file system of a path or URL, and the path in it; a path without ``://`` is local.

    Raises:
        ValueError: no such protocol, or its package is not installed.
    """
    try:
        if not is_url(path):  # fsspec would take '::' for a chain of file systems, and pathlib refuse a '~x'
            return fsspec.filesystem("file"), os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111
        return fsspec.core.url_to_fs(path)
    except ImportError as error:
        package = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs"}.get(path.partition("://")[0])
        install = f"; pip install {package}" if package else ""
        raise ValueError(f"{path}: text and token files of this protocol need one more package{install}") from error


def find(pattern: str) -> list[str]:
    """Expands a path or glob into the sorted list of its files, remote ones with their protocol.

    As in a shell, ``*`` and ``**`` leave out hidden files and folders; a pattern with the dot finds them. An existing
    file, or existing folders at the beginning of the glob, are taken literally, even with ``[`` or ``?`` in the name.

    Raises:
        FileNotFoundError: nothing matches.
        ValueError: a matching file is empty or of an unknown format.
    """
    found = matching(pattern)
    for file, size in found:
        if not file.endswith(FORMATS):
            raise ValueError(f"{file}: unknown format; text files end in {', '.join(FORMATS)}")
        if size == 0:
            fs, path = filesystem(file)
            raise ValueError(f"{file} is {'empty' if fs.exists(path) else 'a link to no file'}")
    return [file for file, _ in found]


def matching(pattern: str) -> list[tuple[str, int]]:
    """The sorted files of a path or glob, each with its size in bytes; files of every format, and empty ones.

    Raises:
        FileNotFoundError: nothing matches.
        ValueError: a directory.
    """
    fs, path = filesystem(pattern)
    if fs.isdir(path):
        glob = shlex.quote(f"{pattern.rstrip('/')}/*.txt")
        raise ValueError(f"{pattern} is a directory; name its files by a glob such as {glob}")
    infos = [fs.info(path)] if fs.exists(path) else _glob(fs, path)
    infos = sorted((info for info in infos if info["type"] != "directory"), key=lambda info: info["name"])
    if not infos:
        hidden = " (hidden files count only where the pattern has the dot)" if re.search("[*?[]", path) else ""
        raise FileNotFoundError(f"no file matches {pattern}{hidden}")
    return [(fs.unstrip_protocol(info["name"]) if is_url(pattern) else info["name"], info["size"]) for info in infos]


def _glob(fs: fsspec.AbstractFileSystem, path: str) -> list[dict[str, Any]]:
    parts = path.split("/")
    first = next((n for n, part in enumerate(parts) if re.search("[*?[]", part)), len(parts))
    # From the first part with a wildcard on, as many as are folders of that very name.
    literal = next((n for n in range(len(parts) - 1, first, -1) if fs.isdir("/".join(parts[:n]))), first)
    folder, rest = parts[:literal], parts[literal:]
    escaped = [re.sub("[*?[]", r"[\g<0>]", part) for part in folder]
    dotted = [part for part in rest if part.startswith(".")]

    def is_hidden(name: str) -> bool:
        below = name.split("/")[literal:]
        return any(n.startswith(".") and not any(fnmatch.fnmatchcase(n, part) for part in dotted) for n in below)

    found = fs.glob("/".join([*escaped, *rest]), detail=True)
    return [info for name, info in found.items() if not is_hidden(name)]


def size(files: list[str]) -> int:
    """Bytes of the files as stored (compressed)."""
    return sum(fs.size(path) for fs, path in map(filesystem, files))


def texts(files: list[str], text_key: str = "text", progress: Callable[[int], None] = lambda _: None) -> Iterator[str]:
    """Yields the text of every document; arguments and errors as of ``documents``."""
    return (document.text for document in documents(files, text_key, progress))


def documents(
    files: list[str],
    text_key: str = "text",
    progress: Callable[[int], None] = lambda _: None,
    control_field: str = "",
) -> Iterator[Document]:
    """Yields every document that has text, in the order of the files.

    Args:
        files: what ``find`` returned.
        text_key: field of the text in ``.jsonl`` and ``.parquet``.
        progress: called with the number of stored bytes consumed since its last call.
        control_field: field of the control code there; "" = none.

    Raises:
        ValueError: a file is not UTF-8, not JSON, lacks a field or is damaged (the message gives file and line, row or
            byte), or all files together contain no text.
    """
    keys = (text_key, control_field) if control_field else (text_key,)
    empty = True
    for file in files:
        done = 0
        fs, path = filesystem(file)
        with fs.open(path, "rb") as raw:
            for document in _read(file, raw, keys):
                if document.text:
                    empty = False
                    yield document
                progress(raw.tell() - done)
                done = raw.tell()
    if empty:
        more = f" (and {len(files) - 1} more files)" if len(files) > 1 else ""
        raise ValueError(f"{files[0]}{more}: no documents with text in it")


def records(files: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the objects of ``.jsonl`` and ``.jsonl.gz`` files, each after its place, ``FILE:LINE``.

    Raises:
        ValueError: another kind of file, one that is not UTF-8, not JSON or damaged, or a line that is no object.
    """
    for file in files:
        if not file.removesuffix(".gz").endswith(".jsonl"):
            raise ValueError(f"{file} must be a .jsonl or .jsonl.gz file, with a record on each line")
        fs, path = filesystem(file)
        with fs.open(path, "rb") as raw:
            stream = gzip.GzipFile(fileobj=raw) if file.endswith(".gz") else raw
            try:
                for where, line in _lines(file, stream):
                    yield where, _object(line, where, "an object")
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise ValueError(f"{file}: damaged or truncated gzip file ({error})") from None


def _read(file: str, raw: IO[bytes], keys: tuple[str, ...]) -> Iterator[Document]:
    """``keys`` are the field of the text, and that of the control code where one is wanted."""
    if file.endswith(".parquet"):
        yield from _parquet(file, raw, keys)
        return
    if file.removesuffix(".gz").endswith(".txt") and len(keys) > 1:
        raise ValueError(f"{file} has no field {keys[1]!r}; control codes are read from .jsonl and .parquet")
    stream: IO[bytes] = gzip.GzipFile(fileobj=raw) if file.endswith(".gz") else raw  # type: ignore[assignment]
    try:
        if file.removesuffix(".gz").endswith(".txt"):
            yield Document(_decode(stream.read(), file, 0))
        else:
            yield from _json_lines(file, stream, keys)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{file}: damaged or truncated gzip file ({error})") from None


def _decode(data: bytes, file: str, offset: int) -> str:
    try:
        return data.decode("utf-8-sig" if offset == 0 else "utf-8")
    except UnicodeDecodeError as error:
        where = offset + error.start
        raise ValueError(f"{file} is not UTF-8: byte 0x{data[error.start]:02x} at offset {where}") from None


def _json_lines(file: str, stream: IO[bytes], keys: tuple[str, ...]) -> Iterator[Document]:
    for where, line in _lines(file, stream):
        yield _fields(line, keys, where)


def _lines(file: str, stream: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """The lines that are not blank, each after its place."""
    offset = 0
    for number, line in enumerate(stream, start=1):
        text = _decode(line, file, offset)
        offset += len(line)
        if text.strip():
            yield f"{file}:{number}", text


def _object(line: str, where: str, wanted: str) -> dict[str, Any]:
    record = json_text.parse(line, where)
    if not isinstance(record, dict):
        raise ValueError(f"{where}: {wanted} was expected, not {line.strip()[:40]!r}")
    return record


def _fields(line: str, keys: tuple[str, ...], where: str) -> Document:
    record = _object(line, where, f"a JSON object with the key {keys[0]!r}")
    for key, knob in zip(keys, ("text_key", "control_field"), strict=False):
        if key not in record:
            there = ", ".join(map(repr, record)) or "none"
            raise ValueError(f"{where}: no key {key!r}; there are {there} (choose with {knob})")
    return _document([record[key] for key in keys], keys, where)


def _document(values: list[Any], keys: tuple[str, ...], where: str) -> Document:
    document = Document(*(text_of(value, key, where) for value, key in zip(values, keys, strict=True)))
    if len(keys) > 1 and not document.control:
        raise ValueError(f"{where}: {keys[1]!r} is empty; a control code has at least one character")
    return document


def text_of(value: Any, key: str, where: str) -> str:
    """A text of a record, without halves of surrogate pairs.

    Raises:
        ValueError: it is not a text.
    """
    if not isinstance(value, str):
        raise ValueError(f"{where}: {key!r} must be text, not {json.dumps(value, default=repr)[:40]}")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair, which UTF-8 cannot hold
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def _parquet(file: str, raw: IO[bytes], keys: tuple[str, ...]) -> Iterator[Document]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"{file}: reading parquet needs pyarrow; pip install 'scaling[data]'") from None
    try:
        table = pyarrow.parquet.ParquetFile(raw)
        names = table.schema_arrow.names
        for key in keys:
            if names.count(key) > 1:
                raise ValueError(f"{file}: {names.count(key)} columns have the name {key!r}; rename all but one")
            if key not in names:
                raise ValueError(f"{file}: no column {key!r}; there are {', '.join(map(repr, names))}")
        row = 0
        for batch in table.iter_batches(batch_size=_PARQUET_ROWS, columns=list(keys)):
            for cells in zip(*(batch.column(key) for key in keys), strict=True):
                row += 1
                where = f"{file}: row {row}"
                yield _document([_python(cell, where) for cell in cells], keys, where)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{file}: damaged parquet file ({str(error).splitlines()[0]})") from None


def _python(value: Any, where: str) -> Any:
    """A cell of a parquet file as text; the file may contain any bytes in a column of texts."""
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(f"{where} is not UTF-8: byte 0x{byte:02x} at offset {error.start} of it") from None


def is_file(path: str) -> bool:
    """Whether there is a file, local or remote."""
    if is_remote(path):
        return epath.Path(path).is_file()
    fs, inner = filesystem(path)
    return bool(fs.isfile(inner))


def read_bytes(path: str) -> bytes:
    """The whole of one file, local or remote."""
    if is_remote(path):  # small files of runs need no package of fsspec's
        return epath.Path(path).read_bytes()
    fs, inner = filesystem(path)
    return fs.cat_file(inner)
