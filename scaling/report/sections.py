"""The sections of a page, in reading order. To add one, append to ``sections``."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from scaling.laws.isoflop import made_of
from scaling.report import compute_figures, expert_figures, law_figures, tables, task_figures
from scaling.report.collect import STATES, Ladder
from scaling.report.expert_figures import expert_logs
from scaling.report.optimum import Optimum, interval
from scaling.report.reward_figures import reward_against_divergence, reward_log, reward_table
from scaling.report.style import Drawing, human
from scaling.report.tables import escape, scientific, with_interval
from scaling.report.task_scores import fit_notes, group_means, last, overall, task_scores
from scaling.runs.run_directory import RunDirectory

if TYPE_CHECKING:
    from scaling.laws.fit import Fit
    from scaling.report.fits import Fits


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page: its anchor, title, HTML, and figures that follow it."""

    key: str
    title: str
    html: str
    drawings: tuple[Drawing, ...] = ()


def sections(ladder: Ladder, fits: "Fits") -> list[Section]:
    """Everything about the runs."""
    found = fits.by_count[ladder.count]
    joint = found.chinchilla
    parts = [
        Section("summary", "Summary", _summary(ladder, fits)),
        Section(
            "compute",
            "Loss against compute",
            _why("There is no L(C)", fits.law),
            (compute_figures.loss_against_compute(ladder, fits),),
        ),
        Section(
            "sizes",
            "Loss against size and tokens",
            _law_html(joint) if not isinstance(joint, str) else _why("There is no joint law L(N, D)", joint),
            (law_figures.loss_against_sizes(ladder, joint),) if len(ladder.points) > 1 else (),
        ),
    ]
    curves = law_figures.isoflop_curves(ladder)
    refused = _why("There are no isoFLOP minima to fit", found.isoflop)
    if curves is None:
        refused = "<p>No budget of FLOPs has several sizes.</p>"
    elif not isinstance(found.isoflop, str):
        refused = tables.notes(
            [
                *made_of(found.isoflop),
                *(s for s in found.isoflop.left_out if s.startswith("budget")),
                *(f"outlier, not fitted: {s}" for s in found.isoflop.outliers),
            ]
        )
    parts.append(Section("isoflop", "IsoFLOP curves", refused, (curves,) if curves else ()))
    best = compute_figures.optimal_sizes(ladder, fits)
    parts.append(Section("optimum", "Compute-optimal size", _optimum_html(ladder, fits), (best,) if best else ()))
    if not isinstance(joint, str):
        drawing = compute_figures.residuals(ladder, joint, fits.held_out)
        outliers = tables.notes([f"outlier, kept in the fit: {name}" for name in joint.outliers])
        parts.append(Section("residuals", "Residuals of the joint law", outliers, (drawing,)))
    parts += _tasks(ladder) + _experts(ladder) + rewards({entry.name: entry.run for entry in ladder.entries})
    about = "<p>C is what the runs counted, whichever way N is counted. The page uses the convention in bold.</p>"
    parts += [
        Section("counts", "How N is counted", about + tables.conventions(ladder, fits)),
        Section("runs", "Runs", tables.runs(ladder)),
        Section("configs", "Configs", tables.configs(ladder)),
        Section("left_out", "Left out and doubtful", _doubts(ladder, fits)),
    ]
    return parts


def _tasks(ladder: Ladder) -> list[Section]:
    """Scores of tasks, and how they grew; nothing where none was evaluated."""
    scores = task_scores(ladder)
    if not scores:
        return []
    groups, everything = group_means(scores), overall(scores)
    drawings = [task_figures.of_all(everything)] if everything else []
    drawings += [task_figures.of_group(means) for means in groups]
    body = tables.tasks([score for means in groups for score in last(means.scores)])
    notes = [note for means in (everything, *groups) if means for note in means.notes]
    body += tables.notes(notes + fit_notes([score for means in groups for score in last(means.single)]))
    parts = [Section("tasks", "Tasks", body, tuple(drawings))]
    if training := task_figures.over_training(scores):
        parts.append(Section("training", "Tasks over training", "", tuple(training)))
    return parts


def _experts(ladder: Ladder) -> list[Section]:
    """Load of the experts and losses of their routers; nothing where no run has experts."""
    logs = expert_logs(ladder)
    if not logs:
        return []
    return [Section("experts", "Experts", tables.experts(logs), (expert_figures.routers(logs),))]


def rewards(runs: Mapping[str, RunDirectory]) -> list[Section]:
    """Rewards against the divergence of the runs, by name, that learned from them; nothing where none did."""
    logs = [log for name, run in runs.items() if (log := reward_log(name, run))]
    if not logs:
        return []
    drawing = reward_against_divergence(logs)
    return [Section("rewards", "Reward against divergence", reward_table(logs), (drawing,))]


def law_text(fit: "Fit") -> str:
    """L(C) = 0.52 + 72.4 C^-0.159, exponent [0.130, 0.171]: one line of plain text."""
    low, high = fit.intervals["alpha"]
    constant = f"{np.exp(fit.theta['e']):.4f} + " if "e" in fit.theta else ""
    return (
        f"L(C) = {constant}{np.exp(fit.theta['a']):.4g} C^-{fit.theta['alpha']:.4f}, "
        f"95 % interval of the exponent [{low:.4f}, {high:.4f}]"
    )


def held_out_text(ladder: Ladder, fits: "Fits") -> str:
    """The largest budget, or where there is no joint law the largest run of the frontier, as predicted."""
    held = fits.held_out
    if not isinstance(held, str):
        best = int(np.argmin(held.points["loss"]))
        worst = float(held.percent[np.argmax(np.abs(held.percent))])
        text = _prediction(held.points.names[best], held.predicted[best], held.points["loss"][best])
        others = f"; worst of its {len(held.points)} runs {worst:+.2f} %" if len(held.points) > 1 else ""
        return f"joint law fitted without the largest budget: {text}{others}"
    if not isinstance(fits.law, str) and fits.law.held_out:
        run = fits.law.held_out
        return f"L(C) fitted without the largest run: {_prediction(run['name'], run['predicted'], run['observed'])}"
    return ""


def warnings(ladder: Ladder, fits: "Fits") -> list[str]:
    """Every doubt about the fits of the page."""
    found = fits.by_count[ladder.count]
    named = {"L(C)": fits.law, "joint law": found.chinchilla, "isoFLOP": found.isoflop, "envelope": fits.envelope}
    result = [f"{name}: {w}" for name, fit in named.items() if not isinstance(fit, str) for w in fit.warnings]
    if len(np.unique(fits.frontier["params"])) == 1 < len(fits.frontier):
        result.append("L(C): the runs of the frontier have one size, so it is a law of tokens and not of the best size")
    if not isinstance(fits.compute, str) and fits.law is not fits.compute:
        result.append("L(C): its irreducible loss cannot be told from these runs, so the law is given without")
    if isinstance(found.optimum, Optimum) and found.optimum.spread > 0.1:
        spread = f"FLOPs a token differ from a power of N by up to {found.optimum.spread:.0%}"
        result.append(f"joint law: {spread}, so its N* and D* are approximate at the ends")
    return result


def _prediction(name: str, predicted: float, observed: float) -> str:
    return (
        f"{name} predicted {predicted:.4f}, observed {observed:.4f}, off by {100 * (predicted / observed - 1):+.2f} %"
    )


def _summary(ladder: Ladder, fits: "Fits") -> str:
    states = [entry.state for entry in ladder.entries]
    counted = [f"{states.count(s)} {s}" for s in STATES if s in states]
    points = ladder.points
    tiles = [
        ("runs", str(len(states)), ", ".join(counted)),
        ("parameters N", _range(points["params"], human), escape(ladder.count)),
        ("tokens D", _range(points["tokens"], human), ""),
        ("compute C", _range(points["flops"], scientific), "FLOPs, as the runs counted them"),
    ]
    boxes = "".join(f"<div><dt>{a}</dt><dd>{b}</dd><small>{c}</small></div>" for a, b, c in tiles)
    lines = (
        [] if isinstance(fits.law, str) else [re.sub(r"C\^-([\d.]+)", r"C<sup>−\1</sup>", escape(law_text(fits.law)))]
    )
    held = held_out_text(ladder, fits)
    if held:
        lines.append(escape(held[0].upper() + held[1:]))
    rows, _ = _optima(ladder, fits)
    exponents = _exponents(rows) if rows else '<p><a href="#optimum">Why there is no optimal size</a></p>'
    body = f'<dl class="tiles">{boxes}</dl>' + "".join(f'<p class="law">{line}</p>' for line in lines)
    body += _why("There is no L(C)", fits.law) + exponents
    doubts = warnings(ladder, fits)
    return body + (f"<p>Warnings:</p>{tables.notes(doubts, 'warnings')}" if doubts else "")


def _range(values: np.ndarray, shown: Callable[[float], str]) -> str:
    low, high = shown(values.min()), shown(values.max())
    return low if low == high else f"{low} – {high}"


def _law_html(fit: "Fit") -> str:
    rows = []
    for name, value in fit.theta.items():
        shown, label = np.array([value, *fit.intervals[name]]), fit.law.logs.get(name)
        rows.append([label or name, *(f"{x:.4g}" for x in (np.exp(shown) if label else shown))])
    text = f"<p>{escape(fit.law.formula)}, fitted to {fit.num_points} runs.</p>"
    return text + tables.table(["parameter", "value", "2.5 %", "97.5 %"], rows, (1, 2, 3))


def _optima(ladder: Ladder, fits: "Fits") -> tuple[list[list[str]], list[str]]:
    """Exponents of N* and D* by each approach as cells, and why others have none."""
    found = fits.by_count[ladder.count]
    rows, refused = [], []
    for name, fit in (("isoFLOP minima (approach 2)", found.isoflop), ("envelope of the curves (1)", fits.envelope)):
        if isinstance(fit, str):
            refused.append(f"{name}: {fit}")
            continue
        exponents = ("params_exponent", "tokens_exponent")
        rows.append([name, *(with_interval(fit.theta[each], *fit.intervals.get(each, ())) for each in exponents)])
    if isinstance(found.optimum, Optimum):
        middle, low, high = interval(found.optimum.exponents())
        rows.append(["joint law (3)", *(with_interval(middle[i], low[i], high[i]) for i in range(2))])
    else:
        refused.append(f"joint law (3): {found.optimum}")
    return rows, refused


def _exponents(rows: list[list[str]]) -> str:
    return tables.table(["compute-optimal size by", "N* ∝ C to the", "D* ∝ C to the"], rows, (1, 2))


def _optimum_html(ladder: Ladder, fits: "Fits") -> str:
    rows, refused = _optima(ladder, fits)
    return (_exponents(rows) if rows else "") + tables.notes([f"not by {reason}" for reason in refused])


def _doubts(ladder: Ladder, fits: "Fits") -> str:
    found = fits.by_count[ladder.count]
    left_out = [f"{entry.name}: {entry.reason}" for entry in ladder.entries if entry.reason]
    for name, fit in (("isoFLOP", found.isoflop), ("envelope", fits.envelope)):
        if not isinstance(fit, str):
            left_out += [f"{name}: {s}" for s in fit.left_out if s not in left_out]
    refusals = {
        "L(C)": fits.law,
        "joint law": found.chinchilla,
        "isoFLOP": found.isoflop,
        "envelope": fits.envelope,
        "held-out budget": fits.held_out,
    }
    parts = {
        "Left out": left_out,
        "Fits that these runs do not allow": [
            f"{n}: {reason}" for n, reason in refusals.items() if isinstance(reason, str)
        ],
        "Warnings": warnings(ladder, fits),
    }
    shown = [f"<h3>{title}</h3>{tables.notes(sentences)}" for title, sentences in parts.items() if sentences]
    return "".join(shown) or "<p>Nothing.</p>"


def _why(title: str, fit: object) -> str:
    return f'<p class="refused">{title}: {escape(fit)}.</p>' if isinstance(fit, str) else ""
