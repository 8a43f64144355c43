"""Accuracy of tasks against size, compute and number of examples, as GPT-3's figures 1.2 and 1.3, and over training."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from scaling.report.compute_figures import FLOPS
from scaling.report.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    VERMILION,
    Colours,
    Drawing,
    around,
    canvas,
    human,
    log_axis,
    plain,
)
from scaling.report.task_scores import Means, TaskScore, last, run_means, used_text

_INTERVAL = 1.96  # standard errors to each side
_STEPS = 3  # of a run, at least, to draw its scores over training
_COLUMNS = 3
_Panel = Callable[[Figure, Axes, Means], None]
_TICKED = 8  # numbers of examples that can get a tick, about


def of_group(means: Means) -> Drawing:
    """Scores of a group of tasks against size, compute and number of examples, and of its single tasks."""
    scores, final = means.scores, last(means.scores)
    first = scores[0]
    panels: list[_Panel] = [_by_size, _by_compute]
    if len(first.tasks) > 1:
        panels.append(_by_task)
    if len({score.shots for score in final}) > 1:
        panels.append(_by_shots)
    figure = _drawn(panels, means)
    tasks = f"mean of {len(first.tasks)} tasks" if len(first.tasks) > 1 else "one task"
    items = {score.items for score in scores}
    count = f"{'up to ' if len(items) > 1 else ''}{max(items):,} items"
    return Drawing(
        "task_" + re.sub(r"[^\w.-]", "_", first.group),
        f"{first.group}: {tasks}, {count} at each number of shots. {_about(means)}",
        figure,
    )


def of_all(means: Means) -> Drawing:
    """The mean over all tasks against size and compute, in front of the single tasks."""
    first = means.scores[0]
    return Drawing(
        "tasks",
        f"Mean accuracy over {len(first.tasks)} tasks, all that the runs share; few-shot is the most examples that a "
        f"task was given. {_about(means)}",
        _drawn([_by_task, _by_compute], means),
    )


def over_training(scores: Sequence[TaskScore]) -> list[Drawing]:
    """For each group, the scores along every run that was evaluated at three steps or more."""
    groups: dict[str, list[Means]] = {}
    for run in dict.fromkeys(score.run for score in scores):
        for means in run_means(scores, run):
            if len({score.step for score in means.scores}) >= _STEPS:
                groups.setdefault(means.scores[0].group, []).append(means)
    return [_training(group, runs) for group, runs in groups.items()]


def _about(means: Means) -> str:
    """What the lines of a figure are."""
    curves = "lines against compute are runs as they train; " if _has_curves(means.scores) else ""
    single = "pale lines are single tasks; " if len(means.scores[0].tasks) > 1 else ""
    return f"{curves}{single}bars are 95 % intervals at the last step of a run.".capitalize()


def _drawn(panels: Sequence[_Panel], means: Means) -> Figure:
    columns, rows, width, height = {2: (2, 1, 10, 4.6), 3: (3, 1, 12, 4.2), 4: (2, 2, 10, 8.2)}[len(panels)]
    with canvas(columns, width, height, rows, sharey=True) as (figure, axes):
        for panel, place in zip(panels, axes, strict=True):
            panel(figure, place, means)
        for place in axes[::columns]:
            place.set_ylabel(plain(means.scores[0].metric.replace("_", " ")))
        for place in axes:
            _chance(place, means)
        _legend(axes[0])
    return figure


def _kinds(scores: Sequence[TaskScore]) -> Iterator[tuple[int, str, str]]:
    """Number of examples, label and colour of zero-, one- and few-shot; few is the largest number."""
    shots = sorted({score.shots for score in scores})
    group = scores[0].group
    if 0 in shots:
        yield 0, "zero-shot", BLUE
    if 1 in shots:
        used = "" if group == "all" else used_text(score for score in scores if score.shots == 1)
        yield 1, f"one-shot ({used} used)" if used else "one-shot", ORANGE
    if shots[-1] > 1:
        yield shots[-1], "few-shot" if group == "all" else f"few-shot ({_asked(scores, shots[-1])})", VERMILION


def _asked(scores: Iterable[TaskScore], k: int) -> str:
    """K = 50, and how many were used where the context had no room for them."""
    used = used_text(score for score in scores if score.shots == k)
    return f"K = {k}, {used} used" if used else f"K = {k}"


def _by_size(_: Figure, axes: Axes, means: Means) -> None:
    final = last(means.scores)
    for k, label, colour in _kinds(means.scores):
        longest, others = _one_a_size([score for score in final if score.shots == k])
        _bars(axes, [score.params for score in longest], longest, colour, "-", label)
        axes.plot([s.params for s in others], [s.value for s in others], "o", mfc="none", mec=colour, ms=4, alpha=0.7)
    log_axis(axes, "x", "count", *around([score.params for score in final]), "parameters N")


def _by_compute(_: Figure, axes: Axes, means: Means) -> None:
    final, curves = last(means.scores), _has_curves(means.scores)
    for k, label, colour in _kinds(means.scores):
        for run in dict.fromkeys(score.run for score in final):
            line = sorted((s for s in means.scores if (s.run, s.shots) == (run, k)), key=lambda s: s.flops)
            axes.plot([s.flops for s in line], [s.value for s in line], color=colour, lw=1, alpha=0.6)
        longest, others = _one_a_size([score for score in final if score.shots == k])
        longest.sort(key=lambda s: s.flops)
        _bars(axes, [score.flops for score in longest], longest, colour, "" if curves else "-", label)
        axes.plot([s.flops for s in others], [s.value for s in others], "o", mfc="none", mec=colour, ms=4, alpha=0.7)
    log_axis(axes, "x", "flops", *around([score.flops for score in means.scores]), FLOPS)


def _by_shots(figure: Figure, axes: Axes, means: Means) -> None:
    final = last(means.scores)
    colours = Colours([score.params for score in final])
    for run in dict.fromkeys(score.run for score in final):
        line = sorted((score for score in final if score.run == run), key=lambda s: s.shots)
        _bars(axes, [score.shots_used for score in line], line, colours(line[0].params), "-", None)
    shots = sorted({round(score.shots_used, 1) for score in final})
    if shots[-1] > 1:  # 0, then a logarithmic axis from 1
        axes.set_xscale("symlog", linthresh=1, linscale=0.7, base=2)
    axes.xaxis.set_major_locator(FixedLocator(_apart(axes, shots)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda k, _: f"{k:.4g}"))
    axes.set_xlabel("examples in the context, K")
    colours.bar(figure, axes, "parameters N")


def _apart(axes: Axes, shots: Sequence[float]) -> list[float]:
    """Of growing numbers of examples, those that have room for a tick on the x axis; the largest has one."""
    places = axes.xaxis.get_transform().transform(np.array(shots, float))
    kept = [len(shots) - 1]
    for i in range(len(shots) - 2, -1, -1):
        if places[kept[-1]] - places[i] >= (places[-1] - places[0]) / _TICKED:
            kept.append(i)
    return [shots[i] for i in kept]


def _by_task(figure: Figure, axes: Axes, means: Means) -> None:
    """As ``_by_size``, in front of the single tasks."""
    final = {(score.run, score.step) for score in last(means.scores)}
    single = [score for score in means.single if (score.run, score.step) in final]
    for k, _, colour in _kinds(means.scores):
        for task in dict.fromkeys((score.group, score.tasks) for score in single):
            line, _ = _one_a_size([s for s in single if (s.group, s.tasks) == task and s.shots == k])
            axes.plot([s.params for s in line], [s.value for s in line], color=colour, lw=0.8, alpha=0.3)
    _by_size(figure, axes, means)


def _training(group: str, runs: Sequence[Means]) -> Drawing:
    columns = min(_COLUMNS, len(runs))
    rows = math.ceil(len(runs) / columns)
    with canvas(columns, (6.5, 9, 10)[columns - 1], 1 + (3.4, 2.9, 2.5)[columns - 1] * rows, rows, sharey=True) as (
        figure,
        panels,
    ):
        shots = sorted({score.shots for means in runs for score in means.scores})
        between = dict(zip([k for k in shots if 1 < k < shots[-1]], (GREEN, PURPLE, "#777777"), strict=False))
        colours = between | {shots[-1]: VERMILION} | {0: BLUE, 1: ORANGE}
        for axes, means in zip(panels, runs, strict=False):
            for k in [k for k in shots if k in colours]:
                for task in dict.fromkeys(score.tasks for score in means.single if len(means.scores[0].tasks) > 1):
                    line = sorted((s for s in means.single if (s.tasks, s.shots) == (task, k)), key=lambda s: s.tokens)
                    axes.plot([s.tokens for s in line], [s.value for s in line], color=colours[k], lw=0.6, alpha=0.25)
                line = sorted((s for s in means.scores if s.shots == k), key=lambda s: s.tokens)
                label = _asked((score for means in runs for score in means.scores), k)
                _bars(axes, [score.tokens for score in line], line, colours[k], "-", label)
            _chance(axes, means)
            axes.set_title(plain(means.scores[0].run), fontsize=9.5, fontweight="normal")
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
            axes.xaxis.set_major_formatter(FuncFormatter(human))
        for axes in panels[len(runs) :]:
            axes.remove()
        for axes in panels[max(0, len(runs) - columns) : len(runs)]:
            axes.set_xlabel("tokens")
        for axes in panels[::columns]:
            axes.set_ylabel(plain(runs[0].scores[0].metric.replace("_", " ")))
        _legend(panels[0])
    pale = "Pale lines are single tasks. " if len(runs[0].scores[0].tasks) > 1 else ""
    return Drawing(
        "training_" + re.sub(r"[^\w.-]", "_", group),
        f"{group} over the training of each run. {pale}Bars are 95 % intervals.",
        figure,
    )


def _bars(
    axes: Axes, x: Sequence[float], scores: Sequence[TaskScore], colour: Any, line: str, label: str | None
) -> None:
    """Scores with their 95 % intervals."""
    errors = [_INTERVAL * score.error for score in scores]
    axes.errorbar(
        x,
        [score.value for score in scores],
        errors,
        color=colour,
        ls=line,
        marker="o",
        ms=4,
        lw=1.5,
        elinewidth=1,
        capsize=2,
        label=label,
    )


def _chance(axes: Axes, means: Means) -> None:
    if (chance := means.scores[0].chance) is not None:
        axes.axhline(chance, color=INK, ls=(0, (4, 3)), lw=1, alpha=0.7, label="chance", zorder=1.5)


def _legend(axes: Axes) -> None:
    """In the order in which things were drawn but for chance, which matplotlib would put first, as it has no bars."""
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: labels[i] == "chance")
    axes.legend([handles[i] for i in order], [labels[i] for i in order], loc="best")


def _one_a_size(scores: Sequence[TaskScore]) -> tuple[list[TaskScore], list[TaskScore]]:
    """The run of each size that was trained the longest, by growing size; and the others."""
    longest = {score.params: score for score in sorted(scores, key=lambda s: s.tokens)}
    return [longest[size] for size in sorted(longest)], [s for s in scores if longest[s.params] is not s]


def _has_curves(scores: Sequence[TaskScore]) -> bool:
    """Whether any run was evaluated at several steps."""
    return len({(score.run, score.step) for score in scores}) > len({score.run for score in scores})
