"""GPT-3's Figure 4.2: what the scores on clean items differ from all, against how much of a task is clean."""

import dataclasses
import math
from collections.abc import Sequence

from matplotlib.axes import Axes

from scaling.evaluate.contamination.search import METRICS, Contamination, Effect
from scaling.report.style import BLUE, INK, ORANGE, PALE, VERMILION, Drawing, canvas, plain

_SHOTS = (("zero-shot", BLUE), ("one-shot", ORANGE), ("few-shot", VERMILION))
_BESIDE, _APART = 0.6, 2.4  # percent of the axis: between numbers of shots, between names


@dataclasses.dataclass(frozen=True)
class _Point:
    task: str
    shots: int  # 0, 1 or 2, which is few
    clean: float  # percent
    difference: float  # percent
    error: float


def draw(found: Sequence[Contamination], effects: Sequence[Sequence[Effect]]) -> Drawing | None:
    """The figure; None where no task has a difference.

    Args:
        found: a report a task.
        effects: for each of them what it does to the scores; the first metric of zero, one and most shots is drawn.
    """
    points = []
    for report, its_effects in zip(found, effects, strict=True):
        drawn = {min(effect.shots, 2): effect for effect in sorted(its_effects, key=_importance)}
        for shots, effect in sorted(drawn.items()):
            if math.isfinite(effect.difference):
                clean = 100 * report.clean / report.total
                points.append(_Point(report.task, shots, clean, 100 * effect.difference, 100 * effect.error))
    if not points:
        return None
    with canvas(width=9, height=5.6) as (figure, (axes,)):
        for shots, (label, colour) in enumerate(_SHOTS):
            if line := [point for point in points if point.shots == shots]:
                axes.errorbar(
                    [_x(point) for point in line],
                    [point.difference for point in line],
                    yerr=[1.96 * point.error for point in line],
                    fmt="o",
                    color=colour,
                    ms=5.5,
                    mec="white",
                    mew=0.6,
                    elinewidth=1,
                    capsize=2,
                    label=label,
                    zorder=3,
                )
        axes.axhline(0, color=INK, lw=1)
        reach = 1.15 * max(5.0, *(abs(point.difference) + 1.96 * point.error for point in points))
        axes.set(xlim=(-4, 104), ylim=(-reach, reach))
        axes.set(xlabel="items that are clean (%)", ylabel="score on clean items, against all (%)")
        axes.legend(loc="best")
        _name(axes, points)
    caption = (
        "Scores on the items that do not occur in the training corpus, against all items. Bars are 95 % intervals."
    )
    return Drawing("contamination", caption, figure)


def _importance(effect: Effect) -> tuple[int, int]:
    """Of the effects that would be drawn at one place, the last in this order is: more shots, an earlier metric."""
    return effect.shots, -METRICS.index(effect.metric)


def _x(point: _Point) -> float:
    """Where it is drawn: numbers of shots beside each other, so that their bars do not hide each other."""
    return point.clean + _BESIDE * (point.shots - 1)


def _name(axes: Axes, points: Sequence[_Point]) -> None:
    """Names of the tasks above the plot, upright, apart from each other, with lines down to the points."""
    tops: dict[str, tuple[float, float]] = {}  # name -> percent clean, top of its bars
    for point in points:
        whole = {other.task for other in points if other.clean == 100}
        name = f"{len(whole)} tasks, all clean" if point.clean == 100 and len(whole) > 1 else point.task
        top = point.difference + 1.96 * point.error
        tops[name] = point.clean, max(top, tops.get(name, (0.0, top))[1])
    names = sorted(tops, key=lambda name: tops[name])
    places: list[float] = []
    for name in names:  # from the left, each at least one step from the last
        places.append(max(tops[name][0], places[-1] + _APART) if places else tops[name][0])
    limit = axes.get_xlim()[1] - _APART / 2
    for number in reversed(range(len(places))):  # what was pushed out at the right pushes back
        places[number] = min(places[number], limit)
        limit = places[number] - _APART
    low, high = axes.get_ylim()
    foot = high + 0.04 * (high - low)
    for name, place in zip(names, places, strict=True):
        clean, top = tops[name]
        axes.plot([clean, place], [top, foot], color=PALE, lw=0.7, clip_on=False, zorder=1)
        axes.annotate(
            plain(name), (place, foot), rotation=90, ha="center", va="bottom", fontsize=8.5, annotation_clip=False
        )
