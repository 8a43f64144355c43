"""Load of experts and losses of their routers along the runs that have experts."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from scaling.config.model import Experts
from scaling.report.collect import Ladder, drawn_points, smoothed
from scaling.report.style import INK, Colours, Drawing, canvas, log_axis
from scaling.runs.json_lines import is_number, is_sound

_SCALARS = ("dropped", "balance_loss", "router_z_loss")


@dataclasses.dataclass(frozen=True)
class ExpertLog:
    """What the routers of a run did.

    Attributes:
        run: short name.
        params: N of the run.
        knobs: of its experts.
        tokens: of training [n], growing.
        series: largest and smallest load of an expert as multiples of equal load, dropped share of the choices, balance
            loss, router z-loss [n, 5], averaged over a few percent of the tokens.
    """

    run: str
    params: float
    knobs: Experts
    tokens: np.ndarray
    series: np.ndarray


def expert_logs(ladder: Ladder) -> list[ExpertLog]:
    """The runs with experts that logged their routers, copies excepted."""
    logs = []
    for entry in ladder.entries:
        found = {float(r["tokens"]): values for r in entry.run.metrics if is_sound(r) and (values := _values(r))}
        if not found or entry.state == "copy":
            continue
        tokens = np.array(sorted(found))
        series = smoothed(tokens, np.array([found[each] for each in tokens]))
        index = drawn_points(tokens)
        logs.append(ExpertLog(entry.name, entry.params, entry.run.model.experts, tokens[index], series[index]))
    return logs


def _values(record: dict[str, Any]) -> list[float]:
    """One row of ``series`` from a line of metrics.jsonl; empty where it has none."""
    load = record.get("expert_load")
    if not (isinstance(load, list) and load and all(is_number(each) for each in load)):
        return []
    scalars = [record.get(name) for name in _SCALARS]
    if not all(is_number(each) for each in scalars):
        return []
    return [len(load) * max(load), len(load) * min(load), *(float(each) for each in scalars if each is not None)]


def routers(logs: Sequence[ExpertLog]) -> Drawing:
    """Load, dropped tokens and losses of the routers against tokens, coloured by the size of the run."""
    colours = Colours([log.params for log in logs])
    low, high = min(log.tokens[0] for log in logs), max(log.tokens[-1] for log in logs)
    with canvas(columns=2, rows=2, width=10.5, height=7.4) as (figure, panels):
        for axes in panels:
            log_axis(axes, "x", "count", low / 1.1, high * 1.1, "training tokens D")
        load, dropped, balance, z = panels
        for log in logs:
            style: dict[str, Any] = {"color": colours(log.params), "lw": 1.4, "marker": "." if len(logs) == 1 else ""}
            first = log is logs[0]
            for column, dashes, which in ((0, "-", "most"), (1, "--", "least")):
                label = f"expert with the {which} tokens" if first else None
                load.plot(log.tokens, log.series[:, column], ls=dashes, label=label, **style)
            dropped.plot(log.tokens, 100 * log.series[:, 2], **style)
            balance.plot(log.tokens, log.series[:, 3], **style)
            z.plot(log.tokens, log.series[:, 4], **style)
        load.axhline(1, color=INK, lw=1)
        load.set(ylabel="load over equal load", ylim=(0, None))
        load.legend(loc="best")
        dropped.set(ylabel="dropped choices (%)")
        dropped.set_ylim(0, max(1.0, dropped.get_ylim()[1]))
        balance.axhline(1, color=INK, lw=1)
        balance.set(ylabel="balance loss, 1 at equal load")
        z.set(ylabel="router z-loss", ylim=(0, None))
        colours.bar(figure, panels, "parameters N")
    return Drawing(
        "experts",
        "The routers of every run with experts, averaged over a few percent of the tokens: the largest (solid) and the "
        "smallest (dashed) load of an expert as multiples of equal load, the share of the choices that found no slot, "
        "and the two losses of the routers before their coefficients.",
        figure,
    )
