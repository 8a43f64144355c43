"""Reads local files as records: JSON Lines, JSON, CSV, TSV, XML, lines, blocks of lines, sentences of words with
columns, whole texts; also compressed.

A record comes with its place for messages: ``file:line``, or ``file: record N`` in formats without lines. Files are
looked for anywhere below the data directory by the end of their path: ``BoolQ/val.jsonl`` is found in a collection of
releases, and in a directory named BoolQ. The first file that is found is read. Of the format ``text`` all files are
read.
"""

import bz2
import contextlib
import csv
import dataclasses
import fnmatch
import gzip
import itertools
import os
import re
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from scaling import json_text
from scaling.evaluate.tasks.task import Source, Split

Record = tuple[str, Mapping[str, Any]]  # where it stands, and what it holds
Files = Mapping[str, tuple[Path, ...]]

_COMPRESSED = (".gz", ".bz2")
CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
_LONGEST_FIELD = 2**30  # characters of a cell; the default of Python's csv is 131,072


class Sourced(Protocol):
    """What has a name and sources, such as a task."""

    @property
    def name(self) -> str: ...

    @property
    def sources(self) -> tuple[Source, ...]: ...


def find_source(task: Sourced, data: str | Path | None) -> tuple[Source, Files]:
    """The first of the task's sources whose test file is there.

    Returns:
        The source, and the files: ``test``, ``train`` where there is one, and ``test:KEY``, ``train:KEY`` of aligned
        files; one each, or several of whole texts.

    Raises:
        ValueError: no data directory was given.
        FileNotFoundError: it does not exist, or no source's files are in it.
    """
    wanted = " or ".join(source.test.file for source in task.sources)
    if data is None:
        raise ValueError(f"task {task.name} reads local files; give the directory that holds {wanted} with --data=DIR")
    root = Path(data).resolve()
    if not root.is_dir():
        raise FileNotFoundError(f"{data} is no directory; --data=DIR must hold {wanted} for task {task.name}")
    names = sorted(_below(root), key=lambda name: (name.count("/"), name))
    for source in task.sources:
        count = None if FORMATS[source.format].all_files else 1
        found = {}
        for name, split in (("test", source.test), ("train", source.train)):
            if split is not None:
                found[name] = tuple(itertools.islice(_find(split.file, names, root), count))
                for key, file in split.aligned.items():
                    found[f"{name}:{key}"] = tuple(itertools.islice(_find(file, names, root), 1))
        files = {name: paths for name, paths in found.items() if paths}
        if any(f"train:{key}" not in files for key in (source.train.aligned if source.train else ())):
            files.pop("train", None)
        if "test" in files and all(f"test:{key}" in files for key in source.test.aligned):
            return source, files
    raise FileNotFoundError(f"{data} does not hold {wanted}, which task {task.name} reads")


def _below(root: Path) -> Iterator[str]:
    """The files below a folder, as paths from it, without hidden ones and those in hidden folders.

    Links to folders are followed, except to a folder that contains them.
    """
    above: dict[str, frozenset[str]] = {str(root): frozenset()}  # folder -> real paths of the folders around it
    for folder, folders, files in os.walk(root, followlinks=True):
        around, real = above.pop(folder), os.path.realpath(folder)
        if real in around:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        above.update((str(Path(folder, name)), around | {real}) for name in folders)
        yield from (Path(folder, file).relative_to(root).as_posix() for file in files if not file.startswith("."))


def _find(pattern: str, names: list[str], root: Path) -> Iterator[Path]:
    for name in names:
        if is_named(Path(f"/{root.name}/{name}"), pattern):
            yield root / name


def is_named(path: Path, pattern: str) -> bool:
    """Whether the end of an absolute path is that of a split's ``file``, compressed or not."""
    whole = path.as_posix()
    plain = (whole, *(whole.removesuffix(end) for end in _COMPRESSED if whole.endswith(end)))
    return any(fnmatch.fnmatchcase(name, f"*/{pattern}") for name in plain)


def read(source: Source, split: Split, files: Files, name: str) -> Iterator[Record]:
    """Yields the records of one split (``name``: test or train), with the lines of its aligned files.

    Raises:
        ValueError: a file or a record is malformed; says which, and where.
    """
    first = files[name][0]
    records = itertools.chain.from_iterable(FORMATS[source.format].read(path, source) for path in files[name])
    if not split.aligned:
        yield from records
        return
    lines = {key: _lines(files[f"{name}:{key}"][0]) for key in split.aligned}
    for where, record in records:
        joined = {key: next(line, None) for key, line in lines.items()}
        for key, line in joined.items():
            if line is None:
                raise ValueError(f"{files[f'{name}:{key}'][0]} has fewer lines than {first} has records")
        yield where, {**record, **{key: line[1] for key, line in joined.items() if line is not None}}
    for key, rest in lines.items():
        if next(rest, None) is not None:
            raise ValueError(f"{files[f'{name}:{key}'][0]} has more lines than {first} has records")


def _open(path: Path) -> IO[str]:
    """Opens for reading. Only newlines end lines, as in JSON Lines."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="\n")
    if path.suffix == ".bz2":
        return bz2.open(path, "rt", encoding="utf-8-sig", newline="\n")
    return path.open(encoding="utf-8-sig", newline="\n")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[IO[str]]:
    """Opens a file; wrong bytes raise a ValueError that names it."""
    try:
        with _open(path) as stream:
            yield stream
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error.reason} (byte 0x{error.object[error.start]:02x})") from None
    except (gzip.BadGzipFile, EOFError, zlib.error, OSError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        raise ValueError(f"{path}: damaged or truncated file ({error})") from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1, without their ends."""
    with _reading(path) as stream:
        for number, line in enumerate(stream, start=1):
            yield number, line.rstrip("\r\n")


def _whole(path: Path) -> str:
    return "\n".join(line for _, line in _lines(path))


def _jsonl(path: Path, source: Source) -> Iterator[Record]:
    for number, line in _lines(path):
        where = f"{path}:{number}"
        if line.strip() and source.records:
            inside = _inside(_object(line, where), source.records.split("."), {}, f"{where}: {source.records}")
            yield from ((where, record) for record in inside)
        elif line.strip():
            yield where, _object(line, where)


def _object(text: str, where: str) -> Mapping[str, Any]:
    record = json_text.parse(text, where)
    if not isinstance(record, dict):
        raise ValueError(f"{where}: a JSON object was expected, not {text.strip()[:40]!r}")
    return record


def _json(path: Path, source: Source) -> Iterator[Record]:
    yield from _numbered(json_text.parse(_whole(path), str(path)), source.records or "*", path)


def _xml(path: Path, source: Source) -> Iterator[Record]:
    try:
        root = ElementTree.fromstring(_whole(path))
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: not XML ({error})") from None
    yield from _numbered(_element(root), source.records or "*", path)


def _element(element: ElementTree.Element) -> Any:
    """Children by their tag (a list where a tag repeats); the text of an element without any."""
    if not len(element):
        return element.text or ""
    children: dict[str, Any] = {}
    for child in element:
        value = _element(child)
        if child.tag in children:
            before = children[child.tag]
            children[child.tag] = [*before, value] if isinstance(before, list) else [before, value]
        else:
            children[child.tag] = value
    return children


def _numbered(value: Any, records: str, path: Path) -> Iterator[Record]:
    for number, record in enumerate(_inside(value, records.split("."), {}, f"{path}: {records}"), start=1):
        yield f"{path}: record {number}", record


def _inside(value: Any, parts: list[str], outer: Mapping[str, Any], where: str) -> Iterator[Mapping[str, Any]]:
    """The objects at a path, each with the keys of the objects around it."""
    if not parts:
        if not isinstance(value, dict):
            raise ValueError(f"{where} must lead to JSON objects, not {str(value)[:40]!r}")
        yield {**outer, **value}
    elif parts[0] == "*":
        for item in value if isinstance(value, list) else [value]:
            yield from _inside(item, parts[1:], outer, where)
    elif isinstance(value, dict) and parts[0] in value:
        around = {**outer, **{key: item for key, item in value.items() if key != parts[0]}}
        yield from _inside(value[parts[0]], parts[1:], around, where)
    else:
        raise ValueError(f"{where}: there is no key {parts[0]!r}")


def _table(path: Path, source: Source, **dialect: Any) -> Iterator[Record]:
    numbered = (f"{line}\n" for _, line in _lines(path))
    csv.field_size_limit(_LONGEST_FIELD)
    rows = csv.reader(numbered, **dialect)
    columns = list(source.columns)
    try:
        for row in rows:
            if not columns:
                columns = [name.strip() for name in row]
                if twice := next((name for name in columns if name and columns.count(name) > 1), None):
                    raise ValueError(f"{path}:{rows.line_num}: two columns are named {twice!r}")
            elif row:
                where = f"{path}:{rows.line_num}"
                if len(row) != len(columns):
                    raise ValueError(f"{where}: {len(row)} columns, and there should be {len(columns)}")
                yield where, dict(zip(columns, row, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}:{rows.line_num}: {error}") from None


def _csv(path: Path, source: Source) -> Iterator[Record]:
    return _table(path, source, skipinitialspace=True)  # so that a, "b, c" has two cells


def _tsv(path: Path, source: Source) -> Iterator[Record]:
    return _table(path, source, delimiter="\t", quoting=csv.QUOTE_NONE)


def _plain(path: Path, _: Source) -> Iterator[Record]:
    for number, line in _lines(path):
        yield f"{path}:{number}", {"line": line}


def _labelled(path: Path, _: Source) -> Iterator[Record]:
    for number, line in _lines(path):
        label, space, text = line.partition(" ")
        if line.strip() and not space:
            raise ValueError(f"{path}:{number}: a label, a space and a text were expected, not {line[:40]!r}")
        if line.strip():
            yield f"{path}:{number}", {"label": label, "text": text}


def _blocks(path: Path, source: Source) -> Iterator[Record]:
    block: list[str] = []
    number = 0
    for number, line in _lines(path):
        block.append(line)
        if len(block) == len(source.columns):
            yield f"{path}:{number - len(block) + 1}", dict(zip(source.columns, block, strict=True))
            block = []
    if any(line.strip() for line in block):
        raise ValueError(f"{path}:{number}: the last record has {len(block)} of {len(source.columns)} lines")


def _conll(path: Path, source: Source) -> Iterator[Record]:
    """Sentences as lists of their columns: a line a word, cells apart by a tab or blanks, a blank line at the end."""
    cells = ((number, line.split("\t") if "\t" in line.strip() else line.split()) for number, line in _lines(path))
    return _sentences(path, source.columns, cells)


def _conllu(path: Path, _: Source) -> Iterator[Record]:
    """The same with the columns of CoNLL-U, without comments, ranges of words (2-3) and words that are absent (3.1)."""
    lines = ((number, line) for number, line in _lines(path) if not line.startswith("#"))
    cells = ((number, line.split("\t") if line.strip() else []) for number, line in lines)
    words = ((number, each) for number, each in cells if not each or not re.fullmatch(r"\d+[-.]\d+", each[0]))
    return _sentences(path, CONLLU, words)


def _sentences(path: Path, columns: Sequence[str], lines: Iterable[tuple[int, list[str]]]) -> Iterator[Record]:
    rows, begin = list[list[str]](), 0
    for number, cells in itertools.chain(lines, [(0, [])]):
        if cells and len(cells) != len(columns):
            raise ValueError(f"{path}:{number}: {len(cells)} columns, and there should be {len(columns)}")
        if cells:
            begin = begin if rows else number
            rows.append(cells)
        elif rows:
            yield f"{path}:{begin}", {name: [row[i] for row in rows] for i, name in enumerate(columns)}
            rows = []


def _text(path: Path, _: Source) -> Iterator[Record]:
    with _reading(path) as stream:
        yield str(path), {"text": stream.read()}


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of files.

    Attributes:
        read: yields the records of a file.
        keys: of its records, where they are always the same.
        columns: whether a task may name the columns; ``required`` = it must.
        records: whether a task may say where in the file the records are.
        all_files: whether all files that match are read, and not the first.
    """

    read: Callable[[Path, Source], Iterator[Record]]
    keys: tuple[str, ...] = ()
    columns: Literal["no", "optional", "required"] = "no"
    records: bool = False
    all_files: bool = False


FORMATS = {
    "jsonl": Format(_jsonl, records=True),
    "json": Format(_json, records=True),
    "csv": Format(_csv, columns="optional"),
    "tsv": Format(_tsv, columns="optional"),
    "xml": Format(_xml, records=True),
    "lines": Format(_plain, keys=("line",)),
    "labelled_lines": Format(_labelled, keys=("label", "text")),
    "blocks": Format(_blocks, columns="required"),
    "conll": Format(_conll, columns="required"),
    "conllu": Format(_conllu, keys=CONLLU),
    "text": Format(_text, keys=("text",), all_files=True),
}
