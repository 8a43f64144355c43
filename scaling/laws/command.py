"""The options of ``scaling fit`` and ``scaling predict``, and what they run. Imports JAX only when it runs."""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scaling.laws.points import Points

FORMS = ("power", "kaplan", "chinchilla", "envelope", "isoflop", "data_constrained")


def add_fit_options(parser: argparse.ArgumentParser) -> None:
    """Declares what ``fit`` reads."""
    add = parser.add_argument
    add("points", nargs="+", metavar="POINTS", help="a table (.csv, .jsonl), or run directories or folders of them")
    add("--form", choices=FORMS, default="chinchilla", help="the law (default: chinchilla)")
    add(
        "--params", metavar="COL", help="column of parameters; of runs how to count them: total, without_embeddings, .."
    )
    add("--tokens", metavar="COL", help="column of training tokens")
    add("--loss", metavar="COL", help="column of the loss, nats a token; of runs: validation (default) or training")
    add("--flops", metavar="COL", help="column of training FLOPs (without one: 6 N D)")
    add("--unique", metavar="COL", help="column of tokens before the data repeats, for data_constrained")
    add(
        "--run",
        dest="run_column",
        metavar="COL",
        help="column that tells runs apart where a table has several points of each",
    )
    add("--against", choices=("params", "tokens", "flops"), help="variable of power (default: flops)")
    add("--no_irreducible", action="store_true", help="power without its constant term")
    add("--equal_exponents", action="store_true", help="chinchilla with beta = alpha")
    add("--delta", type=float, default=1e-3, metavar="X", help="Huber's delta (default: 1e-3)")
    add("--error", choices=("log", "loss"), default="log", help="error of the log loss (default) or of the loss")
    add("--noise", type=float, default=0.005, metavar="NATS", help="isoflop: spread of the loss over seeds (0.005)")
    add("--resamples", type=int, default=1000, metavar="N", help="resamples for the intervals (default: 1000)")
    add("--drop_outliers", action="store_true", help="fit without the outliers; they are named either way")
    add("--seed", type=int, default=0, metavar="N", help="of the resamples")
    add("--json", action="store_true", help="for programs, and for `scaling predict`")


def add_predict_options(parser: argparse.ArgumentParser) -> None:
    """Declares what ``predict`` reads."""
    add = parser.add_argument
    add("fit", metavar="FIT.json", help="what `scaling fit --json` printed")
    add("--flops", type=float, metavar="C", help="training FLOPs")
    add("--params", type=float, metavar="N", help="parameters")
    add("--tokens", type=float, metavar="D", help="training tokens")
    add("--unique", type=float, metavar="U", help="tokens before the data repeats (default: never)")
    add("--json", action="store_true", help="for programs")


def fit(options: argparse.Namespace) -> int:
    """Fits and prints.

    Raises:
        ValueError: points or options that allow no fit.
    """
    if options.resamples < 0:
        raise ValueError(f"--resamples={options.resamples} must not be negative")
    points = _points(options)
    for sentence in points.left_out:
        print(f"left out: {sentence}", file=sys.stderr)
    if options.form == "isoflop":
        from scaling.laws.frontier import isoflop

        found = isoflop(points, noise=options.noise, resamples=options.resamples, seed=options.seed)
    elif options.form == "envelope":
        from scaling.laws.frontier import envelope

        found = envelope(points, resamples=options.resamples, seed=options.seed)
    else:
        only_cpu()
        from scaling.laws.fit import fit_law
        from scaling.laws.summary import law_to_text

        law = fit_law(
            points,
            options.form,
            delta=options.delta,
            error=options.error,
            resamples=options.resamples,
            drop_outliers=options.drop_outliers,
            seed=options.seed,
            **_form_options(options),
        )
        print(law.to_json() if options.json else law_to_text(law))
        return 0
    from scaling.laws.summary import frontier_to_text

    print(found.to_json() if options.json else frontier_to_text(found))
    return 0


def predict(options: argparse.Namespace) -> int:
    """Predicts and prints.

    Raises:
        ValueError: a file that is no fit, or sizes that it cannot use.
    """
    only_cpu()
    from scaling.laws.fit import load_fit
    from scaling.laws.predict import predict
    from scaling.laws.summary import prediction_to_text

    found = predict(
        load_fit(options.fit),
        flops=options.flops,
        params=options.params,
        tokens=options.tokens,
        unique=options.unique,
    )
    print(json.dumps(found) if options.json else prediction_to_text(found))
    return 0


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
            raise ValueError(f"--{name}={column} names a column of a table; run directories have none")
    return read_runs(
        options.points,
        count=options.params or "total",
        loss=options.loss or "validation",
        curves=options.form == "envelope",
    )


def _form_options(options: argparse.Namespace) -> dict[str, Any]:
    power = options.against is not None or options.no_irreducible
    if power and options.form != "power":
        raise ValueError(f"--against and --no_irreducible belong to --form=power, not {options.form}")
    if options.equal_exponents and options.form != "chinchilla":
        raise ValueError(f"--equal_exponents belongs to --form=chinchilla, not {options.form}")
    if options.form == "power":
        return {"against": options.against or "flops", "irreducible": not options.no_irreducible}
    return {"equal_exponents": True} if options.equal_exponents else {}


def only_cpu() -> None:
    """Keeps JAX from claiming an accelerator that a training run may need."""
    import jax

    jax.config.update("jax_platforms", "cpu")
