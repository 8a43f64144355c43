"""The points of a fit: parameters, tokens, FLOPs and loss of runs, from a table. Nothing here needs JAX."""

import csv
import dataclasses
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from scaling import json_text

_TOGETHER = 0.2  # tokens that follow a power of the parameters this closely add no information
QUANTITIES = ("params", "tokens", "loss", "flops", "unique")


@dataclasses.dataclass(frozen=True)
class Points:
    """Runs, or points along runs.

    Attributes:
        names: where each comes from, a run or ``file:line``.
        runs: the run of each; points of one run are resampled and held out together.
        columns: quantity -> float64 [n], positive: params, tokens, loss (nats a token), flops, unique (tokens of
            training text before it is repeated).
        left_out: sentences that name what was not read, and why.
    """

    names: tuple[str, ...]
    runs: tuple[str, ...]
    columns: Mapping[str, np.ndarray]
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, quantity: str) -> np.ndarray:
        """One quantity [n]; C = 6 N D supplies a missing one of the three.

        Raises:
            ValueError: the table has no such column.
        """
        if quantity in self.columns:
            return self.columns[quantity]
        have = self.columns.keys()
        if quantity == "flops" and {"params", "tokens"} <= have:
            return 6 * self.columns["params"] * self.columns["tokens"]
        if quantity == "tokens" and {"params", "flops"} <= have:
            return self.columns["flops"] / (6 * self.columns["params"])
        raise ValueError(f"the fit needs a column of {quantity}; name it with --{quantity}=COL")

    @property
    def groups(self) -> np.ndarray:
        """The run of each point as a number from 0, [n]."""
        return np.unique(self.runs, return_inverse=True)[1]

    def take(self, kept: np.ndarray) -> "Points":
        """The points where ``kept`` [n] is true."""
        index = np.flatnonzero(kept)
        return dataclasses.replace(
            self,
            names=tuple(self.names[i] for i in index),
            runs=tuple(self.runs[i] for i in index),
            columns={name: values[index] for name, values in self.columns.items()},
        )


def read_table(path: epath.PathLike, columns: Mapping[str, str], run: str | None = None) -> Points:
    """Points from a .csv or .jsonl table, one a row.

    Args:
        path: the table.
        columns: quantity (of ``QUANTITIES``) -> column; a quantity that is not named is read from the column of its
            own name if there is one.
        run: column that tells the runs apart, where several rows are points of one run; None = each row is a run.

    Raises:
        ValueError: a column that is not there, a row with more or fewer cells than the header, or a value that is no
            positive number; names the row.
        FileNotFoundError: no such file.
    """
    path = epath.Path(path)
    rows = _rows(path)
    header = list(rows[0][1])
    for column in [*columns.values(), *([run] if run else [])]:
        if column not in header:
            raise ValueError(f"{path} has no column {column!r}; it has {_listed(header)}")
    chosen = {q: columns.get(q, q) for q in QUANTITIES if columns.get(q, q) in header}
    if "loss" not in chosen:
        raise ValueError(f"{path} has no column 'loss'; name it with --loss=COL, one of {_listed(header)}")
    values = {
        quantity: np.array(
            [_positive(_cell(row, column, f"{path}:{line}"), f"{path}:{line}", column) for line, row in rows]
        )
        for quantity, column in chosen.items()
    }
    names = tuple(f"{path.name}:{line}" for line, _ in rows)
    runs = tuple(str(_cell(row, run, f"{path}:{line}")).strip() for line, row in rows) if run else names
    return Points(names, runs, values)


def _rows(path: epath.Path) -> list[tuple[int, dict[str, Any]]]:
    """(line, row) of each row that is not blank; the line is that where the row begins, from 1."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if path.suffix not in (".csv", ".jsonl"):
        raise ValueError(f"{path} must be a run directory, or a table that ends in .csv or .jsonl")
    try:
        text = path.read_bytes().decode("utf-8-sig")  # spreadsheets write a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    if path.suffix == ".csv":
        rows = list(_csv_rows(path, text))
    else:
        lines = enumerate(io.StringIO(text), 1)
        rows = [(number, _record(path, number, line)) for number, line in lines if line.strip()]
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows


def _csv_rows(path: epath.Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    # Not its lines: a quoted cell may hold line breaks. Blanks before a quote are none of the cell.
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
    header: list[str] = []
    line = 0
    try:
        for cells in reader:
            first, line = line + 1, reader.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if header and len(cells) != len(header):
                raise ValueError(f"{path}:{first} has {len(cells)} of {len(header)} columns")
            if header:
                yield first, dict(zip(header, cells, strict=True))
                continue
            header = [_bare(cell) for cell in cells]
            for column in header:
                if column and header.count(column) > 1:
                    raise ValueError(
                        f"{path}:{first} has {header.count(column)} columns {column!r}; rename all but one"
                    )
    except csv.Error as error:
        raise ValueError(f"{path}:{line + 1} is not CSV: {error}") from None


def _bare(name: str) -> str:
    """A name in a header without the blanks and the quotes around it."""
    name = name.strip()
    quoted = len(name) > 1 and name[0] == name[-1] and name[0] in "'\""
    return name[1:-1].strip() if quoted else name


def _listed(names: Sequence[str]) -> str:
    """Names of columns; those with blanks around them in quotes, or they would look like others."""
    return ", ".join(name if name == name.strip() else repr(name) for name in names)


def _record(path: epath.Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json_text.read(line, f"{path}:{number}")
    except json_text.Unreadable:
        raise
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise ValueError(f"{path}:{number} is not a JSON object")
    return record


def _cell(row: Mapping[str, Any], column: str, where: str) -> Any:
    if column not in row:
        raise ValueError(f"{where} has no column {column!r}; mend or delete the row")
    return row[column]


def _positive(value: Any, where: str, column: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{where}: {column} is {value!r} but must be a positive number; mend or delete the row")
    return number


def require_variety(points: Points, needs: Sequence[str], distinct: int) -> None:
    """Refuses points from which no exponent can be fitted.

    Raises:
        ValueError: a quantity in ``needs`` has fewer than ``distinct`` values.
    """
    for quantity in needs:
        found = np.unique(points[quantity])
        if len(found) < distinct:
            shown = ", ".join(f"{value:.4g}" for value in found)
            plural = "s" if len(found) > 1 else ""
            raise ValueError(
                f"the {len(points)} points have only {len(found)} value{plural} of {quantity} ({shown}); "
                f"the fit needs at least {distinct}"
            )


def require_independence(points: Points) -> None:
    """Refuses runs whose tokens follow from their parameters, as D = 20 N: no law of both can separate their effects.

    Raises:
        ValueError: log D is a straight line of log N.
    """
    log_n, log_d = np.log(points["params"]), np.log(points["tokens"])
    if min(np.ptp(log_n), np.ptp(log_d)) < _TOGETHER:
        return  # one of them hardly varies: another refusal or warning says that better
    slope, start = np.polyfit(log_n, log_d, 1)
    off = float(np.max(np.abs(np.expm1(start + slope * log_n - log_d))))
    if off < _TOGETHER:
        raise ValueError(
            f"tokens follow the parameters, D = {np.exp(start):.3g} N^{slope:.3g} within {off:.1%}, so a law of both "
            "cannot tell them apart; vary them apart, or fit --form=power"
        )
