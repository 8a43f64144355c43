"""Reads files of JSON lines, such as ``metrics.jsonl``, whole or from the end, and appends to them. No JAX."""

import io
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from etils import epath

from scaling import durable, json_text

_TAIL = 1 << 14  # bytes read at a time from the end of a file
_REMOTE_FLUSH_SECONDS = 60.0  # object stores cannot append: the whole file is rewritten at most this often


def read_lines(path: epath.Path) -> list[dict[str, Any]]:
    """Records of a .jsonl file; blank lines and a torn last one (the run was killed while writing) are left out.

    Raises:
        ValueError: a line in the middle is not JSON, or one is no object or ``Unreadable``.
    """
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
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

    This is the last such record of ``read_lines``, but damage in earlier lines is not noticed. Local files only.

    Raises:
        ValueError: a line that was read, and is not the last, is not JSON, or one is no object or ``Unreadable``.
    """
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
    """An append-only .jsonl file that survives being killed and resumed."""

    def __init__(self, path: epath.Path, is_stale: Callable[[dict[str, Any]], bool]):
        """Opens the file and drops stale lines (and a torn last line), so no step appears twice."""
        self._path = path
        self._lines: list[str] = []
        self._flushed = time.monotonic()
        self._remote = "://" in str(path)
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if not _is_stale(line, is_stale)]
            durable.replace_text(path, "".join(line + "\n" for line in kept))
            self._lines = kept if self._remote else []
        self._file: Any = None if self._remote else path.open("a")

    def write(self, record: dict[str, Any]) -> None:
        line = json.dumps(record)
        if self._file:
            self._file.write(line + "\n")
            self._file.flush()
        else:
            self._lines.append(line)
            if time.monotonic() - self._flushed > _REMOTE_FLUSH_SECONDS:
                self.flush()

    def flush(self) -> None:
        if self._remote:
            self._path.write_text("".join(line + "\n" for line in self._lines))
            self._flushed = time.monotonic()

    def close(self) -> None:
        self.flush()
        if self._file:
            self._file.close()


def _is_stale(line: str, is_stale: Callable[[dict[str, Any]], bool]) -> bool:
    try:
        return is_stale(json.loads(line))
    except (ValueError, KeyError, TypeError):
        return True


def append(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Appends lines to a file to which another process may append too; first removes a torn last line of a kill."""
    lines = [json.dumps(record) + "\n" for record in records]
    with path.open("a+b") as file:
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
