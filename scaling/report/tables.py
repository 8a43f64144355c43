"""Tables of a page, as HTML: fits by convention of N, runs, configs. Every text is escaped here."""

import html
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scaling.report.collect import Entry, Ladder, flatten
from scaling.report.optimum import Optimum, interval
from scaling.report.style import human

if TYPE_CHECKING:
    from scaling.report.expert_figures import ExpertLog
    from scaling.report.fits import Fits
    from scaling.report.task_scores import TaskScore

_NEVER_SHOWN = ("config.workdir",)  # differs always, and is the name of the run
_CONVENTIONS = {
    "active": "parameters that serve a token: all but idle experts",
    "total": "all parameters (GPT-3's tables)",
    "without_embeddings": "blocks and final norm",
    "kaplan": "matrices of the blocks (Kaplan et al.)",
    "chinchilla": "these and the last layer (Hoffmann et al.)",
}


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """A table of cells that are HTML already; the columns in ``numeric`` are aligned to the right."""

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="n"' if i in numeric else "" for i in range(len(cells))]
        return "<tr>" + "".join(f"<{tag}{k}>{cell}</{tag}>" for k, cell in zip(kinds, cells, strict=True)) + "</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    return f'<div class="wide"><table><thead>{line(header, "th")}</thead>\n<tbody>{body}</tbody></table></div>'


def escape(text: Any) -> str:
    """Text as HTML."""
    return html.escape(str(text))


def scientific(value: float) -> str:
    """1.25×10¹³ as HTML."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}×10<sup>{int(exponent)}</sup>"


def with_interval(value: float, *low_high: float, digits: int = 3) -> str:
    """0.451 [0.440, 0.466]; the value alone where there is no interval."""
    bounds = ", ".join(f"{bound:.{digits}f}" for bound in low_high)
    return f"{value:.{digits}f}" + (f" <small>[{bounds}]</small>" if bounds else "")


def duration(seconds: float) -> str:
    """45 s, 12.5 min, 3.2 h."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def conventions(ladder: Ladder, fits: "Fits") -> str:
    """Exponents with N counted each way, and why a fit is missing."""
    rows, reasons = [], []
    for count, found in fits.by_count.items():
        alpha = beta = by_law = by_curves = e = "–"
        if isinstance(found.chinchilla, str):
            reasons.append(f"joint law, N {count}: {found.chinchilla}")
        else:
            theta, low_high = found.chinchilla.theta, found.chinchilla.intervals
            alpha, beta = (with_interval(theta[name], *low_high[name]) for name in ("alpha", "beta"))
            e = with_interval(*np.exp([theta["e"], *low_high["e"]]))
        if isinstance(found.optimum, Optimum):
            middle, low, high = interval(found.optimum.exponents()[:, 0])
            by_law = with_interval(float(middle), float(low), float(high))
        if isinstance(found.isoflop, str):
            reasons.append(f"isoFLOP minima, N {count}: {found.isoflop}")
        else:
            name = "params_exponent"
            by_curves = with_interval(found.isoflop.theta[name], *found.isoflop.intervals.get(name, ()))
        name = f"<b>{escape(count)}</b>" if count == ladder.count else escape(count)
        sizes = [entry.run.num_params(count) for entry in ladder.entries]
        cells = [name, escape(_CONVENTIONS[count]), f"{human(min(sizes))} – {human(max(sizes))}"]
        rows.append([*cells, e, alpha, beta, by_law, by_curves])
    header = ["N", "counts", "range", "E", "α", "β", "N* exponent, joint law", "N* exponent, isoFLOP"]
    return table(header, rows, range(3, 8)) + notes(reasons)


def tasks(scores: "Sequence[TaskScore]") -> str:
    """A row a run and group, a column a number of shots; values with standard errors."""
    shots = sorted({score.shots for score in scores})
    rows: dict[tuple[str, str], dict[int, str]] = {}
    for score in scores:
        row = rows.setdefault((score.group, score.run), {})
        row[score.shots] = f"{score.value:.3f}" + ("" if math.isnan(score.error) else f" ± {score.error:.3f}")
    header = ["tasks", "run", *(f"{k} shots" for k in shots)]
    body = [[escape(group), escape(run), *(row.get(k, "") for k in shots)] for (group, run), row in rows.items()]
    return table(header, body, numeric=range(2, 2 + len(shots)))


def experts(logs: "Sequence[ExpertLog]") -> str:
    """A row a run: its experts, and what its routers did at the end."""
    header = ["run", "experts", "of a token", "capacity", *("largest load", "smallest load", "dropped")]
    rows = []
    for log in logs:
        knobs, last = log.knobs, log.series[-1]
        capacity = f"{knobs.capacity:g}" if knobs.capacity else "none is dropped"
        shares = [f"{last[0]:.2f}", f"{last[1]:.2f}", f"{100 * last[2]:.2f} %"]
        cells = [escape(log.run), str(knobs.count), str(knobs.per_token), capacity, *shares]
        rows.append([*cells, *(f"{value:.4g}" for value in last[3:])])
    return table([*header, "balance loss", "router z-loss"], rows, range(1, 9))


def notes(sentences: Sequence[str], kind: str = "note") -> str:
    """A list of sentences; nothing if there are none."""
    if not sentences:
        return ""
    return f'<ul class="{kind}">' + "".join(f"<li>{escape(s)}</li>" for s in dict.fromkeys(sentences)) + "</ul>"


def runs(ladder: Ladder) -> str:
    """One row a run."""
    header = ["run", "N", "D", "C (FLOPs)", "batch (tokens)", "peak lr", "steps", "loss", "time", "status"]
    return table(header, [_run_row(entry) for entry in ladder.entries], range(1, 9))


def _run_row(entry: Entry) -> list[str]:
    config = entry.run.config
    status = f'<span class="{entry.state}">{entry.state}</span>'
    if entry.reason:
        status += f" <small>{escape(_detail(entry))}</small>"
    return [
        escape(entry.name),
        human(entry.params),
        human(entry.tokens),
        scientific(entry.flops) if entry.flops else "–",
        f"{config['train']['batch_tokens']:,}",
        f"{config.get('optimizer', {}).get('peak_lr', math.nan):.3g}",
        f"{entry.steps:,}",
        f"{entry.loss:.4f}" if math.isfinite(entry.loss) else "–",
        duration(entry.seconds),
        status,
    ]


def _detail(entry: Entry) -> str:
    """The reason without what the state says already."""
    return entry.reason.removeprefix("is not finished, ").removeprefix("diverged, ")


def configs(ladder: Ladder) -> str:
    """Knobs, versions and devices: those that differ as columns, all others folded."""
    known = ("config", "versions", "devices", "mesh", "mfu", "flops_per_token")
    begun = [entry for entry in ladder.entries if entry.run.begun]  # the others have a plan and nothing to compare
    each = [flatten({k: v for k, v in entry.run.values.items() if k in known}) for entry in begun]
    keys = [key for key in dict.fromkeys(key for values in each for key in values) if key not in _NEVER_SHOWN]
    varied = [key for key in keys if len({shown(values.get(key)) for values in each}) > 1]
    common = [[escape(key), escape(shown(each[0].get(key)))] for key in keys if key not in varied]
    if varied:
        header = ["run", *(escape(key.removeprefix("config.")).replace(".", ".<wbr>") for key in varied)]
        rows = [
            [escape(entry.name), *(escape(shown(values.get(key))) for key in varied)]
            for entry, values in zip(begun, each, strict=True)
        ]
        different = table(header, rows, range(1, len(header)))
    else:
        different = "<p>Nothing differs.</p>"
    folded = f"<details><summary>{len(common)} values that all runs share</summary>{table(['knob', 'value'], common)}"
    return different + folded + "</details>"


def shown(value: Any) -> str:
    """A value of a config as text."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)
