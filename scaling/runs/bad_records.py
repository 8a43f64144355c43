"""``bad_records-<process>.jsonl``: the sequences that a run could not read, so that every resume reads what it read."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from scaling.data.bad_records import BadRecords
from scaling.runs.json_lines import JsonLines, read_lines


@contextlib.contextmanager
def remembered(bad: BadRecords, run_dir: epath.Path) -> Iterator[None]:
    """Within the block, this process knows what all processes have noted before, and notes what it finds.

    Raises:
        ValueError: one of the files is damaged.
    """
    file: JsonLines | None = None

    def note(record: dict[str, Any]) -> None:
        nonlocal file
        file = file or JsonLines(run_dir / f"bad_records-{jax.process_index()}.jsonl", lambda _: False)
        file.write(record)

    known = [record for path in sorted(run_dir.glob("bad_records-*.jsonl")) for record in read_lines(path)]
    try:
        bad.keep(known, note)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{run_dir}/bad_records-*.jsonl: a line is no record of a sequence ({error!r})") from None
    try:
        yield
    finally:
        if file:
            file.close()
