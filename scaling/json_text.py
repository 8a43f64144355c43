"""Reads JSON that other programs wrote. Every error in it becomes a ValueError with one sentence that says where."""

import json
import re
import sys
from typing import Any


class Unreadable(ValueError):
    """Well-formed JSON that Python cannot read."""


def read(text: str | bytes, where: str) -> Any:
    """The value of a JSON text; for callers that have their own messages for text that is not JSON.

    Args:
        text: a text, or bytes in UTF-8.
        where: the file, or file and line, for messages.

    Raises:
        Unreadable: a whole number with too many digits, or values nested too deeply; the message names ``where``.
        json.JSONDecodeError, UnicodeDecodeError: the text is not JSON.
    """
    try:
        return json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except RecursionError:
        raise Unreadable(f"{where} has lists or objects nested too deeply to be read") from None
    except ValueError:
        digits, whole = sys.get_int_max_str_digits(), text.decode() if isinstance(text, bytes) else text
        found = re.search(rf"\d{{{digits + 1},}}", whole)
        number = whole.count("\n", 0, found.start()) + 1 if found else 1
        line = f" in line {number}" if number > 1 else ""
        raise Unreadable(
            f"{where} has a whole number of more than {digits} digits{line}, which cannot be read"
        ) from None


def parse(text: str | bytes, where: str) -> Any:
    """The value of a JSON text. A byte order mark at its beginning, which editors on Windows write, is ignored.

    Args:
        text: as for ``read``.
        where: as for ``read``.

    Raises:
        ValueError: not UTF-8, not JSON, or ``Unreadable``; one sentence that says where.
    """
    try:
        decoded = text.decode() if isinstance(text, bytes) else text
        return read(decoded.removeprefix("\ufeff"), where)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(f"{where} is not UTF-8: byte 0x{byte:02x} at offset {error.start}") from None
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise ValueError(f"{where}: not JSON ({error.msg}, {line}column {error.colno})") from None
