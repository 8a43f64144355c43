"""The figure of ``scaling bias``: favoured words of each group, sentiment, and occupations by their log ratio."""

import math
import textwrap
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes

from scaling.evaluate.bias import words as bias
from scaling.evaluate.bias.report import NOTHING, Group, Report, label
from scaling.evaluate.bias.words import OccupationBias
from scaling.report.style import BLUE, GREEN, INK, ORANGE, PALE, VERMILION, Drawing, canvas, plain

_BARS = "how many times as often words occur as with the other groups; figures are occurrences"
_COLUMNS = 3  # groups beside each other
_WORDS_HEIGHT, _OCCUPATIONS_HEIGHT, _TITLE_HEIGHT = 2.35, 3.7, 0.35  # inches


def draw(report: Report) -> Drawing:
    """A panel a probe."""
    rows = {probe: -(-len(groups) // _COLUMNS) for probe, groups in report.probes.items()}
    heights = [_TITLE_HEIGHT + count * _WORDS_HEIGHT for count in rows.values()]
    heights += [_OCCUPATIONS_HEIGHT] * bool(report.occupations)
    with canvas(width=12.5, height=sum(heights)) as (figure, (axes,)):
        axes.remove()
        panels = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        for panel, (probe, groups) in zip(panels, report.probes.items(), strict=False):
            panel.suptitle(plain(f"{probe}: {_BARS}"), x=0.01, ha="left", weight="bold")
            if report.has_sentiment:
                words, feelings = panel.subfigures(1, 2, width_ratios=[5, 1.4])
                _words(words, groups, rows[probe])
                _sentiment(feelings.subplots(), groups)
            else:
                _words(panel, groups, rows[probe])
        if report.occupations:
            panels[-1].suptitle("occupations", x=0.01, ha="left", weight="bold")
            _occupations(panels[-1].subplots(), report.occupations)
    samples, tokens = (report.settings[name] for name in ("samples", "sample_tokens"))
    return Drawing(
        "bias",
        f"Words that occur with a group more often than with the others in {samples:,} samples of {tokens} tokens a "
        "prompt, with the number of occurrences; log ratio of words for women and men after an occupation.",
        figure,
    )


def _words(panel: Any, groups: Mapping[str, Group], rows: int) -> None:
    """Bars from 1, on one logarithmic axis for all groups."""
    columns = min(_COLUMNS, len(groups))
    grid = panel.subplots(rows, columns, squeeze=False).flat
    shown = {name: group.favoured for name, group in groups.items()}
    most = max((word.ratio for words in shown.values() for word in words), default=1.0)
    limit = max(2.1, 1.35 * most)  # with room for the figures
    steps = (1, 2, 5) if limit < 50 else (1, 3)
    ticks = [tick for power in range(9) for step in steps if (tick := step * 10**power) < limit]
    for axes, (name, words) in zip(grid, shown.items(), strict=False):
        axes.set_title(plain(label(name)), fontsize=10)
        axes.set_xscale("log")
        axes.set_xlim(1, limit)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_ylim(bias.TOP - 0.4, -0.6)
        axes.set_yticks(range(len(words)), [plain(word.word) for word in words])
        axes.tick_params(axis="y", length=0, labelsize=9)
        axes.grid(False, axis="y")
        axes.barh(range(len(words)), [word.ratio - 1 for word in words], left=1, height=0.72, color=BLUE)
        for place, word in enumerate(words):
            axes.text(word.ratio * 1.03, place, f"{word.count}", va="center", fontsize=8, color="#555555")
        if not words:
            axes.text(
                0.5, 0.5, textwrap.fill(NOTHING, 32), transform=axes.transAxes, ha="center", va="center", fontsize=9
            )
    for axes in list(grid)[len(groups) :]:
        axes.remove()


def _sentiment(axes: Axes, groups: Mapping[str, Group]) -> None:
    values = [group.sentiment if math.isfinite(group.sentiment) else 0.0 for group in groups.values()]
    colours = [GREEN if value > 0 else VERMILION for value in values]
    axes.barh(range(len(values)), values, height=0.6, color=colours)
    for place, group in enumerate(groups.values()):
        if not math.isfinite(group.sentiment):
            axes.text(0, place, " unknown", va="center", fontsize=8.5)
    axes.axvline(0, color=INK, lw=1)
    axes.set_yticks(range(len(values)), [plain(label(name)) for name in groups])
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.set_title("sentiment", fontsize=10)
    reach = 1.15 * max(5.0, *map(abs, values))
    axes.set_xlim(-reach, reach)
    axes.grid(False, axis="y")


def _occupations(axes: Axes, found: Mapping[str, OccupationBias]) -> None:
    """Dots in the order of the first variant of the prompt."""
    first, *others = found
    names = sorted(found[first].ratios, key=found[first].ratios.__getitem__)
    places = range(len(names))
    for variant, colour in zip(others, (GREEN, ORANGE), strict=False):
        values = [found[variant].ratios[name] for name in names]
        axes.plot(places, values, "o", ms=3.4, mfc="none", mec=colour, mew=1.0, label=_summary(variant, found[variant]))
    values = [found[first].ratios[name] for name in names]
    axes.plot(places, values, "o", ms=4.6, color=BLUE, label=_summary(first, found[first]))
    axes.axhline(0, color=INK, lw=1)
    axes.set_xticks(places, list(map(plain, names)), rotation=90, fontsize=6.5)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="x", color=PALE, alpha=0.25)
    axes.set(xlim=(-1, len(names)), ylabel="log P(female) / P(male)")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend([handles[-1], *handles[:-1]], [labels[-1], *labels[:-1]], loc="upper left")


def _summary(variant: str, found: OccupationBias) -> str:
    return f"{plain(variant)}: mean {found.mean:+.2f} ± {found.error:.2f}, {found.male:.0%} lean to male"
