"""The verb ``report``: fits laws to runs and writes a page with figures. Imports JAX only when it fits."""

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence

from etils import epath

from scaling import __version__


@dataclasses.dataclass(frozen=True)
class Report:
    """The paths that were written (page, table of points, figures), and the lines that the terminal shows."""

    page: epath.Path
    points: epath.Path
    figures: tuple[epath.Path, ...]
    summary: tuple[str, ...]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what ``report`` reads."""
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUNS", help="run directories, or folders of them")
    add("--output", metavar="DIR", help="folder for the page (default: the folder 'report' in RUNS)")
    add(
        "--params",
        default="total",
        metavar="COUNT",
        help="how to count N, such as total (default) or without_embeddings",
    )
    add("--loss", default="validation", metavar="LOSS", help="which loss: validation (default) or training")
    add(
        "--resamples", type=int, default=1000, metavar="N", help="bootstrap resamples for the intervals (default: 1000)"
    )


def run(options: argparse.Namespace) -> int:
    """Writes the report and prints the law.

    Raises:
        ValueError: runs or options that allow no report.
        OSError: the output cannot be written.
    """
    report = write_report(
        options.runs,
        options.output,
        count=options.params,
        loss=options.loss,
        resamples=options.resamples,
    )
    print("\n".join(report.summary))
    print(f"report: {report.page}")
    return 0


def write_report(
    paths: Sequence[epath.PathLike],
    output: epath.PathLike | None = None,
    *,
    count: str = "total",
    loss: str = "validation",
    resamples: int = 1000,
) -> Report:
    """Writes ``report.html``, ``points.csv`` and ``figures/*.png``, ``*.svg``; shows progress on a terminal.

    Args:
        paths: run directories, or folders of them.
        output: folder of the page; None = ``report`` in the only path.
        count: convention of N (``scaling.laws.runs.COUNTS``).
        loss: validation or training.
        resamples: bootstrap resamples of each fit.

    Raises:
        ValueError: no usable run, runs that cannot be compared, or no place for the page.
        FileNotFoundError: no such path.
        OSError: ``output`` cannot be written.
    """
    if resamples < 1:
        raise ValueError(f"--resamples={resamples} must be positive")
    if output is None and len(paths) != 1:
        raise ValueError("several RUNS need --output=DIR, the folder for the page")
    from scaling.report.collect import collect
    from scaling.report.records import write_points

    ladder = collect(paths, count=count, loss=loss)
    folder = epath.Path(output) if output is not None else epath.Path(paths[0]) / "report"
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)  # before the fits, so that a folder that cannot be written fails at once
    write_points(ladder, folder / "points.csv")

    from scaling.platforms import only_cpu

    only_cpu()
    from scaling.report.fits import fit_all
    from scaling.report.page import page
    from scaling.report.sections import held_out_text, law_text, sections

    with _status() as progress:
        fits = fit_all(ladder, resamples=resamples, progress=progress)
        progress("figures", 1, 1)
        parts = sections(ladder, fits)
        drawings = [drawing for part in parts for drawing in part.drawings]
        for drawing in drawings:
            drawing.save(figures)
        name = ", ".join(epath.Path(path).resolve().name for path in paths)
        made = f"{len(ladder.entries)} runs, {loss} loss, N {count}, {resamples} resamples. scaling {__version__}."
        (folder / "report.html").write_text(page(f"Scaling report: {name}", made, parts))
    law = f"no L(C): {fits.law}" if isinstance(fits.law, str) else law_text(fits.law)
    lines = [law, held_out_text(ladder, fits)]
    lines += [f"left out: {entry.name}: {entry.reason}" for entry in ladder.entries if entry.reason]
    return Report(
        page=folder / "report.html",
        points=folder / "points.csv",
        figures=tuple(figures / f"{drawing.name}.{kind}" for drawing in drawings for kind in ("png", "svg")),
        summary=tuple(line for line in lines if line),
    )


@contextlib.contextmanager
def _status() -> Iterator[Callable[[str, int, int], None]]:
    """Shows a progress bar on a terminal, and nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda title, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("fits")

        def show(title: str, done: int, total: int) -> None:
            bar.update(task, description=title, completed=done, total=total)

        yield show
