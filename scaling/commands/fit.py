"""The verb ``fit``: fits a scaling law to runs or a table. Imports JAX only when it runs."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from scaling import exit_codes

if TYPE_CHECKING:
    from scaling.laws.fit import Fit
    from scaling.laws.frontier import Frontier
    from scaling.laws.points import Points

LAWS = ("power", "kaplan", "chinchilla", "data_constrained")
FORMS = (*LAWS[:3], "envelope", "isoflop", LAWS[3])
_FORMS_OF = {  # option -> forms that have it; None = the option was not given
    "against": ("power",),
    "no_irreducible": ("power",),
    "equal_exponents": ("chinchilla",),
    "unique": ("data_constrained",),
    "curve": ("isoflop",),
    "same_size": ("isoflop",),
    "noise": ("isoflop",),
    "delta": LAWS,
    "error": LAWS,
    "drop_outliers": LAWS,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what ``fit`` reads."""
    add = parser.add_argument
    add("points", nargs="+", metavar="POINTS", help="a table (.csv, .jsonl), or run directories, or folders of them")
    add("--form", choices=FORMS, default="chinchilla", help="the law (default: chinchilla)")
    add(
        "--params",
        metavar="COL",
        help="table: column of parameters; runs: how to count them, such as active (default) or without_embeddings",
    )
    add("--tokens", metavar="COL", help="column of training tokens")
    add(
        "--loss",
        metavar="COL",
        help="table: column of the loss in nats per token; runs: validation (default) or training",
    )
    add("--flops", metavar="COL", help="column of training FLOPs (default: 6 N D)")
    add("--unique", metavar="COL", help="data_constrained: table: column of tokens before the data repeats")
    add(
        "--run",
        dest="run_column",
        metavar="COL",
        help="column that names the run, in a table with several points of each run",
    )
    add("--against", choices=("params", "tokens", "flops"), help="power: the variable (default: flops)")
    add("--no_irreducible", action="store_true", default=None, help="power: leave out the constant term")
    add("--equal_exponents", action="store_true", default=None, help="chinchilla: beta = alpha")
    add("--delta", type=float, metavar="X", help="laws: delta of the Huber loss (default: 1e-3)")
    add("--error", choices=("log", "loss"), help="laws: fit the error of log loss (default) or of loss")
    add(
        "--curve",
        choices=("parabola", "akima"),
        help="isoflop: curve through the sizes of a budget (default: parabola)",
    )
    add(
        "--same_size",
        type=float,
        metavar="PART",
        help="isoflop: sizes that differ by at most this fraction count as one size, trained several times "
        "(default: 0.02)",
    )
    add(
        "--noise",
        type=float,
        metavar="NATS",
        help="isoflop: standard deviation of the loss over seeds (default: measured on runs of one size, else 0.005)",
    )
    add(
        "--resamples",
        type=int,
        default=1000,
        metavar="N",
        help="bootstrap resamples for the intervals (default: 1000; 0 = no intervals)",
    )
    add(
        "--drop_outliers",
        action="store_true",
        default=None,
        help="laws: fit without the outliers, which are named in any case",
    )
    add("--seed", type=int, default=0, metavar="N", help="seed of the resamples (default: 0)")
    add("--json", action="store_true", help="print JSON, for programs and for `scaling predict`")


def run(options: argparse.Namespace) -> int:
    """Fits the law and prints it.

    Raises:
        ValueError: points or options that allow no fit.
    """
    if options.resamples < 0:
        raise ValueError(f"--resamples={options.resamples} must not be negative")
    given = _given(options)
    points = _points(options)
    try:
        found = _fit(points, options, given)
    except ValueError:
        _name_left_out(points)  # they may explain the failure
        raise
    if options.json:
        _name_left_out(points)
        print(found.to_json())
        return exit_codes.OK
    from scaling.laws.fit import Fit
    from scaling.laws.summary import frontier_to_text, law_to_text

    print(law_to_text(found) if isinstance(found, Fit) else frontier_to_text(found))  # with what was left out
    return exit_codes.OK


def _fit(points: "Points", options: argparse.Namespace, given: dict[str, Any]) -> "Fit | Frontier":
    shared = {"resamples": options.resamples, "seed": options.seed}
    if options.form == "isoflop":
        from scaling.laws.isoflop import isoflop

        return isoflop(points, **given, **shared)
    if options.form == "envelope":
        from scaling.laws.frontier import envelope

        return envelope(points, **shared)
    from scaling.platforms import only_cpu

    only_cpu()
    from scaling.laws.fit import fit_law

    return fit_law(points, options.form, **given, **shared)


def _name_left_out(points: "Points") -> None:
    """Names the points that were left out on stderr, for output that does not name them on stdout."""
    for sentence in points.left_out:
        print(f"left out: {sentence}", file=sys.stderr)


def _points(options: argparse.Namespace) -> "Points":
    from etils import epath

    from scaling.laws.points import QUANTITIES, read_table
    from scaling.laws.runs import read_runs

    if len(options.points) == 1 and not epath.Path(options.points[0]).is_dir():
        columns = {q: getattr(options, q) for q in QUANTITIES if getattr(options, q) is not None}
        return read_table(options.points[0], columns, options.run_column)
    columns = {"tokens": options.tokens, "flops": options.flops, "unique": options.unique, "run": options.run_column}
    for name, column in columns.items():
        if column is not None:
            raise ValueError(f"--{name}={column} names a column of a table, but run directories were given")
    return read_runs(
        options.points,
        count=options.params or "active",
        loss=options.loss or "validation",
        curves=options.form == "envelope",
        repeated=options.form == "data_constrained",
    )


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The options of the form that were given, as keyword arguments of the function that fits it.

    Raises:
        ValueError: an option of another form, which would be ignored.
    """
    given = {name: value for name in _FORMS_OF if (value := getattr(options, name)) is not None}
    for name in given:
        if options.form not in _FORMS_OF[name]:
            forms = ", ".join(_FORMS_OF[name])
            raise ValueError(f"--{name} belongs to --form={forms}, not {options.form}")
    given.pop("unique", None)  # a column, read with the points
    if options.form == "power":
        given |= {"against": options.against or "flops", "irreducible": not given.pop("no_irreducible", False)}
    return given
