"""A page about several ladders: the law of each, and the ratio of compute at equal loss. Needs no JAX."""

import dataclasses
import os
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath

from scaling.config import schema as cfg
from scaling.laws.frontier import Frontier
from scaling.laws.isocurves import isoflop_budgets
from scaling.laws.isoflop import isoflop
from scaling.laws.points import Points
from scaling.laws.ratio import Comparison, Shared, compare
from scaling.laws.runs import run_points
from scaling.object_store import is_remote
from scaling.report import ratio_figures, tables
from scaling.report.collect import Ladder, collect, flatten, frontier_of
from scaling.report.sections import Section
from scaling.report.style import human
from scaling.report.tables import escape, scientific, with_interval


@dataclasses.dataclass(frozen=True)
class Ladders:
    """Ladders whose losses can be compared; the first is the baseline.

    Attributes:
        names: of the ladders, from their folders.
        frontiers: the best run of each budget of every ladder.
        alone: of every ladder, runs that are the only size of their budget where others have several.
        isoflop: exponents of N* and D* of each; a string is the reason why there are none.
    """

    names: tuple[str, ...]
    each: tuple[Ladder, ...]
    frontiers: tuple[Points, ...]
    alone: tuple[tuple[str, ...], ...]
    found: Comparison
    isoflop: tuple[Frontier | str, ...]

    def others(self) -> Iterator[tuple[int, str]]:
        """Index and name of every ladder but the baseline."""
        yield from list(enumerate(self.names))[1:]

    def as_one(self) -> Ladder:
        """All runs, each with the name of its ladder before its own."""
        entries = [
            dataclasses.replace(entry, name=f"{name}/{entry.name}")
            for name, ladder in zip(self.names, self.each, strict=True)
            for entry in ladder.entries
        ]
        return dataclasses.replace(self.each[0], entries=tuple(entries))


def compare_ladders(paths: Sequence[epath.PathLike], *, count: str, loss: str, resamples: int) -> Ladders:
    """Reads each path as a ladder of its own and fits their laws.

    Args:
        paths: folders of runs, the baseline first.
        count: convention of N (``scaling.laws.runs.COUNTS``).
        loss: validation or training.
        resamples: of the isoFLOP minima.

    Raises:
        ValueError: fewer than two ladders, one that is given twice, ladders that cannot be compared, that have too few
            runs or no common range of loss.
        FileNotFoundError: no such path.
    """
    if len(paths) < 2:
        raise ValueError(f"--compare needs at least two folders of runs, the baseline first; {paths[0]} is one")
    names = ladder_names(paths)
    each = tuple(collect([path], count=count, loss=loss) for path in paths)
    # Refuses runs whose losses cannot be compared, as within one ladder.
    run_points([entry.run for ladder in each for entry in ladder.entries], count=count, loss=loss)
    _check_apart(names, each)
    alone = [_alone(ladder.points) for ladder in each]
    frontiers = tuple(frontier_of(ladder.points.take(~mask)) for ladder, mask in zip(each, alone, strict=True))
    return Ladders(
        names=names,
        each=each,
        frontiers=frontiers,
        alone=tuple(ladder.points.take(mask).names for ladder, mask in zip(each, alone, strict=True)),
        found=compare(frontiers, names),
        isoflop=tuple(_isoflop(ladder.points, resamples) for ladder in each),
    )


def _alone(points: Points) -> np.ndarray:
    """Runs that are the only size of their budget though other budgets have several [n].

    Nothing says that such a size is near the best, so the run would pull L(C) up. A ladder with one size at every
    budget has no such runs.
    """
    budgets = isoflop_budgets(points["flops"])
    sizes = np.array([len(np.unique(points["params"][budget])) for budget in budgets])
    return np.any([budget & (size == 1 < sizes.max()) for budget, size in zip(budgets, sizes, strict=True)], axis=0)


def ladder_names(paths: Sequence[epath.PathLike]) -> tuple[str, ...]:
    """The last parts of the paths in which they differ: a/runs and b/runs are a and b.

    Raises:
        ValueError: a path is given twice.
    """
    parts = [_real(path).parts for path in paths]
    for i, path in enumerate(parts):
        if path in parts[:i]:
            raise ValueError(f"{paths[i]} is given twice; --compare needs different folders of runs")
    while len({path[-1] for path in parts}) == 1:
        parts = [path[:-1] for path in parts]
    length = 1
    while len({path[-length:] for path in parts}) < len(parts):
        length += 1
    return tuple("/".join(path[-length:]) for path in parts)


def _real(path: epath.PathLike) -> epath.Path:
    """The absolute path without links; of a remote one the path itself."""
    return epath.Path(path) if is_remote(path) else epath.Path(os.path.realpath(path))


def _check_apart(names: Sequence[str], each: Sequence[Ladder]) -> None:
    owner: dict[str, str] = {}
    for name, ladder in zip(names, each, strict=True):
        for entry in ladder.entries:
            run = str(_real(entry.run.path))
            if owner.setdefault(run, name) != name:
                raise ValueError(f"the run {entry.run.path} is in {owner[run]} and in {name}; ladders must share none")


def _isoflop(points: Points, resamples: int) -> Frontier | str:
    try:
        return isoflop(points, resamples=resamples)
    except ValueError as error:
        return str(error)


def sections(ladders: Ladders) -> list[Section]:
    """Everything about the ladders, in reading order."""
    return [
        Section("summary", "Summary", "".join(f'<p class="law">{escape(line)}</p>' for line in summary(ladders))),
        Section("laws", "Loss against compute", _laws(ladders), (ratio_figures.laws(ladders),)),
        Section("ratio", "Compute at equal loss", _ratios(ladders), (ratio_figures.ratio(ladders),)),
        Section("differences", "What differs", _differences(ladders)),
        Section("runs", "Runs", tables.runs(ladders.as_one())),
        Section("left_out", "Left out and doubtful", tables.notes(_doubts(ladders)) or "<p>Nothing.</p>"),
    ]


def summary(ladders: Ladders) -> list[str]:
    """L(C) of every ladder and the ratios of compute, a line each."""
    lines = []
    for i, name in enumerate(ladders.names):
        e, a, (alpha, low, high) = ladders.found.law(i)
        interval = f"95 % interval of the exponent [{low:.3f}, {high:.3f}]"
        lines.append(f"{name}: L(C) = {e:.4f} + {a:.4g} C^-{alpha:.4f}, {interval}")
    for i, name in ladders.others():
        lines.append(ratio_text(ladders, i, name))
    return lines


def ratio_text(ladders: Ladders, i: int, name: str) -> str:
    """The ratio of compute of one ladder in a sentence: one number if the laws may have one shape, else its range."""
    baseline, shared = ladders.names[0], _shared(ladders, i)
    test = f"F test against separate laws: p = {shared.p_value:.2g}"
    if shared.contradicted:
        losses = ladders.found.named_losses(i)[[0, -1]]
        ends = [
            f"{value:.2f} times [{low:.2f}, {high:.2f}] for loss {loss:.4g}"
            for loss, value, low, high in zip(losses, *ladders.found.ratio(i, losses), strict=True)
        ]
        return (
            f"{baseline} needs for an equal loss, as multiples of the compute of {name} with 95 % intervals: "
            f"{' and '.join(ends)}; the laws have different shapes, so no one ratio describes them ({test})"
        )
    value, least, most = shared.ratio
    return (
        f"{baseline} needs {value:.2f} times the compute of {name} for an equal loss, 95 % interval "
        f"[{least:.2f}, {most:.2f}], by laws of one shape, which the runs do not contradict ({test})"
    )


def _shared(ladders: Ladders, i: int) -> Shared:
    shared = ladders.found.shared[i]
    assert shared, "the baseline has no ratio to itself"
    return shared


def _laws(ladders: Ladders) -> str:
    rows = []
    for i, (name, ladder, frontier, sizes) in enumerate(
        zip(ladders.names, ladders.each, ladders.frontiers, ladders.isoflop, strict=True)
    ):
        e, a, alpha = ladders.found.law(i)
        points = ladder.points
        optimal = ["–", "–"]
        if not isinstance(sizes, str):
            keys = ("params_exponent", "tokens_exponent")
            optimal = [with_interval(sizes.theta[key], *sizes.intervals.get(key, ())) for key in keys]
        ends = (human(points["params"].min()), human(points["params"].max()))
        runs = f"{len(points)}, {len(frontier)} on the frontier"
        rows.append([escape(name), runs, " – ".join(ends), f"{e:.4f}", f"{a:.4g}", with_interval(*alpha), *optimal])
    header = ["ladder", "runs", "N", "E", "A", "α of L(C)", "N* ∝ C to the", "D* ∝ C to the"]
    noise = f"The best runs scatter around the laws by {100 * ladders.found.deviation:.2f} % of the loss."
    about = "L(C) = E + A C<sup>−α</sup> is fitted to the best run of each budget; N* and D* are by isoFLOP minima."
    return f"<p>{about} {noise}</p>" + tables.table(header, rows, range(2, 8))


def _ratios(ladders: Ladders) -> str:
    found, baseline = ladders.found, ladders.names[0]
    text = ""
    for i, name in ladders.others():
        losses = found.named_losses(i)
        each = zip(losses, found.flops(0, losses), found.flops(i, losses), *found.ratio(i, losses), strict=True)
        rows = [
            [f"{loss:.4g}", scientific(of_baseline), scientific(of_other), with_interval(value, low, high, digits=2)]
            for loss, of_baseline, of_other, value, low, high in each
        ]
        header = ["loss", f"C of {escape(baseline)}", f"C of {escape(name)}", "ratio by the separate laws"]
        text += f"<p>{escape(ratio_text(ladders, i, name))}.</p>" + tables.table(header, rows, range(4))
    return text


def _differences(ladders: Ladders) -> str:
    """Knobs of which the runs of each ladder have one value, and not all ladders the same."""
    shown = []
    for ladder in ladders.each:
        # Frozen, so that a knob which an older run does not record has its default.
        every = [flatten(cfg.to_dict(cfg.freeze(entry.run.config))) for entry in ladder.entries if entry.run.begun]
        shown.append({key: {tables.shown(values[key]) for values in every} for key in every[0]})
    rows = []
    for key in shown[0]:
        values = [ladder[key] for ladder in shown]
        if key != "workdir" and all(len(value) == 1 for value in values) and len(set(map(frozenset, values))) > 1:
            rows.append([escape(key), *(escape(*value) for value in values)])
    if not rows:
        return "<p>No knob that has one value in each ladder.</p>"
    return tables.table(["knob", *map(escape, ladders.names)], rows)


def left_out(ladders: Ladders) -> list[str]:
    """Runs that are not used, and why."""
    reasons = [f"{entry.name}: {entry.reason}" for entry in ladders.as_one().entries if entry.reason]
    for name, alone in zip(ladders.names, ladders.alone, strict=True):
        reasons += [f"{name}/{run}: not in L(C), because its budget has no other size" for run in alone]
    return reasons


def _doubts(ladders: Ladders) -> list[str]:
    doubts = []
    for i, name in ladders.others():
        if _shared(ladders, i).contradicted:
            doubts.append(f"{name}: its law has another shape than that of {ladders.names[0]}; see the ratio by loss")
    doubts += left_out(ladders)
    for name, ladder, sizes in zip(ladders.names, ladders.each, ladders.isoflop, strict=True):
        reasons = [sizes] if isinstance(sizes, str) else [*sizes.left_out, *sizes.warnings]
        doubts += [f"{name}, isoFLOP: {reason}" for reason in reasons if reason not in ladder.points.left_out]
    return doubts
