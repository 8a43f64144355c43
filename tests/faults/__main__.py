"""The fault matrix: tries each fault, prints a table with figures. ``make faults``, or

python -m tests.faults [--only NAME ...] [--quick] [--markdown FILE]
"""

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.faults.lab import Lab, Row
from tests.faults.table import FAULTS, to_markdown, to_table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", metavar="NAME", choices=list(FAULTS), help="; ".join(FAULTS))
    parser.add_argument("--quick", action="store_true", help="a few cases of each fault, as `make test` does")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there, too")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave all run directories here, which must be new")
    options = parser.parse_args()
    if options.keep:
        options.keep.mkdir(parents=True)
    folder = options.keep or Path(tempfile.mkdtemp(prefix="faults-"))
    os.environ.setdefault("SCALING_CACHE", str(folder / "cache"))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    lab = Lab(folder, options.quick)
    try:
        rows = run(options.only or list(FAULTS), lab, options.markdown)
    finally:
        lab.close()
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    Console().print(to_table(rows))
    for row in rows:
        for failure in row.failures:
            print(f"FAILED {row.fault}: {failure}")
    return int(any(row.failures for row in rows))


def run(names: list[str], lab: Lab, markdown: Path | None) -> list[Row]:
    """Tries faults one after the other, with a progress bar; the table so far is written after each."""
    rows = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=Console(stderr=True))
    with bar if sys.stderr.isatty() else contextlib.nullcontext():
        task = bar.add_task("", total=len(names))
        for name in names:
            start = time.monotonic()
            lab.note = lambda text, name=name: bar.update(task, description=f"{name}: {text}"[:70])
            row = FAULTS[name](lab)
            row.seconds = time.monotonic() - start
            rows.append(row)
            bar.advance(task)
            if markdown:
                markdown.write_text(to_markdown(rows))
            if not sys.stderr.isatty():
                print(f"{name}: {row.cases} cases, {len(row.failures)} failures, {row.seconds:.0f} s", file=sys.stderr)
                print("".join(f"  {failure}\n" for failure in row.failures), end="", file=sys.stderr, flush=True)
    return rows


if __name__ == "__main__":
    sys.exit(main())
