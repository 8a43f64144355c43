"""JSON that others wrote: every way in which it can be wrong becomes a ValueError of one sentence that says where."""

import json
import re
import sys
from typing import Any


def parse(text: str | bytes, where: str) -> Any:
    """The value of a JSON text; a byte order mark before it is dropped, as editors on Windows write one.

    Args:
        text: bytes are UTF-8.
        where: the file, or file and line, for messages.

    Raises:
        ValueError: not UTF-8, not JSON, nested too deeply, or with a longer number than Python reads.
    """
    try:
        decoded = text.decode() if isinstance(text, bytes) else text
        return json.loads(decoded.removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(f"{where} is not UTF-8: byte 0x{byte:02x} at offset {error.start}") from None
    except RecursionError:
        raise ValueError(f"{where} is JSON nested too deeply to read") from None
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise ValueError(f"{where}: not JSON ({error.msg}, {line}column {error.colno})") from None
    except ValueError:
        digits = sys.get_int_max_str_digits()
        found = re.search(rf"\d{{{digits + 1},}}", decoded)
        number = decoded.count("\n", 0, found.start()) + 1 if found else 1
        line = f" in line {number}" if number > 1 else ""
        raise ValueError(
            f"{where} has a whole number of more than {digits} digits{line}, which cannot be read"
        ) from None
