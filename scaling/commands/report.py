"""The verb ``report``: fits laws to runs and writes a page with figures. Imports JAX only when it fits."""

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from etils import epath

from scaling import __version__

if TYPE_CHECKING:
    from scaling.report.sections import Section
    from scaling.runs.run_directory import RunDirectory


@dataclasses.dataclass(frozen=True)
class Report:
    """The paths that were written (page, table of points, figures), and the lines that the terminal shows.

    There is no table of points of runs that learned from rewards.
    """

    page: epath.Path
    points: epath.Path | None
    figures: tuple[epath.Path, ...]
    summary: tuple[str, ...]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what ``report`` reads."""
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUNS", help="run directories, or folders of them")
    add("--output", metavar="DIR", help="folder for the page (default: the folder 'report' in RUNS)")
    add(
        "--compare",
        action="store_true",
        help="each of RUNS is a ladder of its own, the first is the baseline: their laws, and the ratio of compute at "
        "equal loss",
    )
    add(
        "--params",
        default="active",
        metavar="COUNT",
        help="how to count N, such as active (default), total or without_embeddings",
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
    write = write_comparison if options.compare else write_report
    report = write(options.runs, options.output, count=options.params, loss=options.loss, resamples=options.resamples)
    print("\n".join(report.summary))
    print(f"report: {report.page}")
    return 0


def write_report(
    paths: Sequence[epath.PathLike],
    output: epath.PathLike | None = None,
    *,
    count: str = "active",
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
    folder = _folder(paths, output, resamples)
    from scaling.report.collect import collect
    from scaling.report.records import write_points
    from scaling.runs.run_directory import find_runs, load, read_ahead

    with read_ahead(paths):
        runs = [load(path) for path in find_runs(paths)]
        rewards = all(run.learns_from_rewards for run in runs)
        ladder = None if rewards else collect(paths, count=count, loss=loss)
    if ladder is None:
        return _write_rewards(folder, paths, runs)
    # Before the fits, so that a folder that cannot be written fails at once.
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    write_points(ladder, folder / "points.csv")

    from scaling.platforms import only_cpu

    only_cpu()
    from scaling.report.fits import fit_all
    from scaling.report.sections import held_out_text, law_text, sections

    with _status() as progress:
        fits = fit_all(ladder, resamples=resamples, progress=progress)
        progress("figures", 1, 1)
        made = f"{len(ladder.entries)} runs, {loss} loss, N {count}, {resamples} resamples"
        figures = _write(folder, f"Scaling report: {_names(paths)}", made, sections(ladder, fits))
    law = f"no L(C): {fits.law}" if isinstance(fits.law, str) else law_text(fits.law)
    lines = [law, held_out_text(ladder, fits)]
    lines += [f"left out: {entry.name}: {entry.reason}" for entry in ladder.entries if entry.reason]
    return Report(folder / "report.html", folder / "points.csv", figures, tuple(line for line in lines if line))


def _write_rewards(folder: epath.Path, paths: Sequence[epath.PathLike], runs: "Sequence[RunDirectory]") -> Report:
    """A page about runs that all learned from rewards: there is no loss to fit."""
    from scaling.report.collect import short_names
    from scaling.report.sections import rewards

    parts = rewards(dict(zip(short_names([str(run.path) for run in runs]), runs, strict=True)))
    if not parts:
        raise ValueError("no run can be used: none has logged finite scores and a divergence")
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    made = f"{len(runs)} runs that learned from rewards"
    figures = _write(folder, f"Rewards: {_names(paths)}", made, parts)
    return Report(folder / "report.html", None, figures, ("no L(C): all runs learned from rewards",))


def _names(paths: Sequence[epath.PathLike]) -> str:
    return ", ".join(epath.Path(path).resolve().name for path in paths)


def write_comparison(
    paths: Sequence[epath.PathLike],
    output: epath.PathLike | None = None,
    *,
    count: str = "active",
    loss: str = "validation",
    resamples: int = 1000,
) -> Report:
    """Writes the same files about several ladders: the law of each, and the ratio of compute at equal loss.

    Args:
        paths: folders of runs, each a ladder, the baseline first.
        output: folder of the page; needed.
        count: convention of N (``scaling.laws.runs.COUNTS``).
        loss: validation or training.
        resamples: of the isoFLOP minima.

    Raises:
        ValueError: one ladder, ladders that cannot be compared, that have too few runs or no common range of loss, or
            no place for the page.
        FileNotFoundError: no such path.
        OSError: ``output`` cannot be written.
    """
    from scaling.report.comparison import compare_ladders, left_out, sections, summary
    from scaling.report.records import write_points

    folder = _folder(paths, output, resamples)
    ladders = compare_ladders(paths, count=count, loss=loss, resamples=resamples)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    together = ladders.as_one()
    write_points(together, folder / "points.csv")
    made = f"{len(together.entries)} runs, {loss} loss, N {count}, {resamples} resamples"
    figures = _write(folder, f"Comparison: {', '.join(ladders.names)}", made, sections(ladders))
    lines = (*summary(ladders), *(f"left out: {reason}" for reason in left_out(ladders)))
    return Report(folder / "report.html", folder / "points.csv", figures, lines)


def _folder(paths: Sequence[epath.PathLike], output: epath.PathLike | None, resamples: int) -> epath.Path:
    """Where the page goes."""
    if resamples < 1:
        raise ValueError(f"--resamples={resamples} must be positive")
    if output is None and len(paths) != 1:
        raise ValueError("several RUNS need --output=DIR, the folder for the page")
    return epath.Path(output) if output is not None else epath.Path(paths[0]) / "report"


def _write(folder: epath.Path, title: str, made: str, parts: "Sequence[Section]") -> tuple[epath.Path, ...]:
    """Writes the page and its figures; returns the paths of the figures."""
    from scaling.report.page import page

    drawings = [drawing for part in parts for drawing in part.drawings]
    figures = folder / "figures"
    for drawing in drawings:
        drawing.save(figures)
    (folder / "report.html").write_text(page(title, f"{made}. scaling {__version__}.", parts))
    return tuple(figures / f"{drawing.name}.{kind}" for drawing in drawings for kind in ("png", "svg"))


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
