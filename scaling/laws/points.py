"""The points of a fit: parameters, tokens, FLOPs and loss of runs, from a table. Nothing here needs JAX."""

import csv
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

_TOGETHER = 0.2  # tokens that follow a power of the parameters this closely tell nothing that these do not
QUANTITIES = ("params", "tokens", "loss", "flops", "unique")


@dataclasses.dataclass(frozen=True)
class Points:
    """Runs, or points along runs, one an index.

    Attributes:
        names: where each comes from, a run or ``file:line``.
        runs: the run of each; points of one run are resampled and held out together.
        columns: quantity -> float64 [n], positive: params, tokens, loss (nats a token), flops, unique (tokens of
            training text before it is repeated).
        left_out: sentences about what was not read, and why.
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
        ValueError: a column that is not there, or a value that is no positive number; names the row.
        FileNotFoundError: no such file.
    """
    path = epath.Path(path)
    rows = _rows(path)
    header = [str(column) for column in rows[0][1] if column is not None]
    for column in [*columns.values(), *([run] if run else [])]:
        if column not in header:
            raise ValueError(f"{path} has no column {column!r}; it has {', '.join(header)}")
    chosen = {q: columns.get(q, q) for q in QUANTITIES if columns.get(q, q) in header}
    if "loss" not in chosen:
        raise ValueError(f"{path} has no column 'loss'; name it with --loss=COL, one of {', '.join(header)}")
    values = {
        quantity: np.array([_positive(row.get(column), f"{path}:{line}", column) for line, row in rows])
        for quantity, column in chosen.items()
    }
    names = tuple(f"{path.name}:{line}" for line, _ in rows)
    return Points(names, tuple(str(row[run]) for _, row in rows) if run else names, values)


def _rows(path: epath.Path) -> list[tuple[int, dict[str, Any]]]:
    """(line, row) of each row; line 1 is the header of a .csv file."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if path.suffix == ".jsonl":
        rows = [(number, _record(path, number, line)) for number, line in enumerate(path.read_text().splitlines(), 1)]
    elif path.suffix == ".csv":
        rows = list(enumerate(csv.DictReader(path.read_text().splitlines()), 2))
    else:
        raise ValueError(f"{path} must be a run directory, or a table that ends in .csv or .jsonl")
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows


def _record(path: epath.Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise ValueError(f"{path}:{number} is not a JSON object")
    return record


def _positive(value: Any, where: str, column: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{where}: {column} is {value!r} but must be a positive number; mend or delete the row")
    return number


def require_variety(points: Points, needs: Sequence[str], distinct: int) -> None:
    """Refuses points from which no exponent can be told.

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
                f"this law needs at least {distinct}"
            )


def require_independence(points: Points) -> None:
    """Refuses runs whose tokens follow from their parameters, as D = 20 N: no law of both can tell them apart.

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
