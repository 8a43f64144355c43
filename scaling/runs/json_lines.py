"""Reads files of JSON lines, such as ``metrics.jsonl``, whole or from the end, and appends to them. No JAX."""

import io
import json
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from etils import epath

from scaling import background, durable, json_text, object_store

_TAIL = 1 << 14  # bytes read at a time from the end of a file
_REMOTE_SECONDS = 60.0  # after which a remote file has a line at the latest; the whole file is put


def read_lines(path: epath.Path) -> list[dict[str, Any]]:
    """Records of a .jsonl file; blank lines and a torn last one (the run was killed while writing) are left out.

    Raises:
        ValueError: a line in the middle is not JSON, or one is no object or ``Unreadable``.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); the file is damaged") from None
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    records = []
    for number, line in lines:
        try:
            record = json_text.read(line, f"{path}:{number}")
        except json_text.Unreadable:
            raise
        except ValueError:
            if number == lines[-1][0]:
                break
            raise ValueError(f"{path}:{number} is not JSON; the file is damaged") from None
        if not isinstance(record, dict):
            raise ValueError(f"{path}:{number} is not a JSON object; the file is damaged")
        records.append(record)
    return records


def last_record(path: epath.Path, key: str) -> dict[str, Any] | None:
    """The last record of a .jsonl file that has ``key``, read from its end; None where there is none.

    This is the last such record of ``read_lines``, but damage in earlier lines of a local file is not noticed.

    Raises:
        ValueError: a line that was read, and is not the last, is not JSON, or one is no object or ``Unreadable``.
    """
    if object_store.is_remote(path):
        return next((record for record in reversed(read_lines(path)) if key in record), None)
    if not path.exists():
        return None
    with path.open("rb") as file:
        end = file.seek(0, io.SEEK_END)
        torn, rest = True, b""  # only the last line may be torn; rest: the later part of the line that is being read
        while end:
            begin = max(0, end - _TAIL)
            file.seek(begin)
            block = file.read(end - begin) + rest
            rest, *lines = block.split(b"\n") if begin else [b"", *block.split(b"\n")]
            for line in reversed(lines):
                if not line.strip():
                    continue
                try:
                    record = json_text.read(line, f"{path}, in a line near its end,")
                except json_text.Unreadable:
                    raise
                except ValueError:
                    if not torn:
                        raise ValueError(f"{path} has a line that is not JSON; the file is damaged") from None
                    record = {}
                torn = False
                if not isinstance(record, dict):
                    raise ValueError(f"{path} has a line that is not a JSON object; the file is damaged")
                if key in record:
                    return record
            end = begin
    return None


def is_number(value: Any) -> bool:
    """Whether a value of a record is a finite number of at least 0; booleans do not count as numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max


def is_sound(record: dict[str, Any]) -> bool:
    """Whether a record has a valid step, and positive tokens and loss."""
    return (
        all(is_number(record.get(key)) for key in ("step", "tokens", "loss")) and record["tokens"] * record["loss"] > 0
    )


class JsonLines:
    """An append-only .jsonl file that survives being killed and resumed.

    A remote file is put whole, in the background: once a minute, and before each checkpoint is committed
    (``background.settle``). So a kill loses at most lines of a minute, no checkpoint covers them, and they come again.
    """

    def __init__(self, path: epath.Path, is_stale: Callable[[dict[str, Any]], bool]):
        """Opens the file and drops stale lines (and a torn last line), so no step appears twice."""
        self._path = path
        self._remote = _RemoteLines(path, is_stale) if object_store.is_remote(path) else None
        self._file: Any = None
        if self._remote:
            return
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if not _is_stale(line, is_stale)]
            durable.replace_text(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a")

    def write(self, record: dict[str, Any]) -> None:
        """Appends a line.

        Raises:
            OSError: this line, or one before, cannot be written.
        """
        line = json.dumps(record) + "\n"
        if self._file:
            self._file.write(line)
            self._file.flush()
        elif self._remote:
            self._remote.add(line)
            background.later(str(self._path), self._remote.put, within=_REMOTE_SECONDS)

    def flush(self) -> None:
        """Waits until all lines are in the file, for readers."""
        if self._remote:
            background.settle()

    def close(self) -> None:
        """Writes what is left, and waits for it."""
        self.flush()
        if self._file:
            self._file.close()


class _RemoteLines:
    """The lines of a remote file. Another process may add some: `scaling evaluate` does, while the run goes on."""

    def __init__(self, path: epath.Path, is_stale: Callable[[dict[str, Any]], bool]):
        self._path, self._added, self._lock = path, list[str](), threading.Lock()
        self._text, self._generation = self._read()
        kept = [line for line in self._text.splitlines() if not _is_stale(line, is_stale)]
        text = "".join(line + "\n" for line in kept)
        if text != self._text:
            while (generation := object_store.write(path, text.encode(), self._generation)) is None:
                found, self._generation = self._read()
                text += found.removeprefix(self._text) if found != text else ""
            self._text, self._generation = text, generation

    def add(self, line: str) -> None:
        with self._lock:
            self._added.append(line)

    def put(self) -> None:
        """Puts all lines, if there are new ones."""
        with self._lock:
            count = len(self._added)
            new = "".join(self._added)
        while new:
            text = self._text + new
            if (generation := object_store.write(self._path, text.encode(), self._generation)) is not None:
                self._text, self._generation = text, generation
                break
            # Another process has written. Or a put was done and its answer was lost: then it ends with these lines.
            self._text, self._generation = self._read()
            if self._text.endswith(new):
                break
        with self._lock:
            del self._added[:count]

    def _read(self) -> tuple[str, bytes]:
        content, generation = object_store.read(self._path)
        return (content or b"").decode(), generation


def _is_stale(line: str, is_stale: Callable[[dict[str, Any]], bool]) -> bool:
    try:
        return is_stale(json.loads(line))
    except (ValueError, KeyError, TypeError):
        return True


def append(path: epath.PathLike, records: Iterable[Mapping[str, Any]]) -> None:
    """Appends lines to a file to which another process may append too; first removes a torn last line of a kill."""
    if object_store.is_remote(path):
        remote = JsonLines(epath.Path(path), lambda _: False)
        for record in records:
            remote.write(dict(record))
        remote.close()
        return
    lines = [json.dumps(record) + "\n" for record in records]
    with Path(path).open("a+b") as file:
        _end_line(file)
        file.write("".join(lines).encode())


def _end_line(file: IO[bytes]) -> None:
    """Makes a file of JSON lines end with a whole line, so that the next line does not continue a torn one."""
    file.seek(0)
    content = file.read()
    last = content[content.rfind(b"\n") + 1 :]
    if not last:
        return
    try:
        json.loads(last)
    except ValueError:
        file.truncate(len(content) - len(last))
    else:
        file.write(b"\n")
