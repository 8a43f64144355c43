"""The figure of ``compare.py``: loss against compute, loss by place in the row, and copying over distance."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from scaling.report.style import BLUE, INK, PALE, VERMILION, Drawing, canvas

LSTM, TRANSFORMER = VERMILION, BLUE


def draw(found: Mapping[str, Any], runs: Mapping[str, Any]) -> Drawing:
    """Three panels of what was found, beside the Transformers' records."""
    with canvas(columns=3, width=14.0, height=4.4) as (figure, (ladder, places, copying)):
        for name, run in runs.items():
            lstm = found[name]
            ladder.plot([run["flops"], lstm["flops"]], [run["loss"], lstm["loss"]], color=PALE, lw=0.8)
            for each, colour, label in ((run, TRANSFORMER, "Transformer"), (lstm, LSTM, "LSTM")):
                label = label if name == next(iter(runs)) else ""
                ladder.plot(each["flops"], each["loss"], "o", color=colour, ms=4, label=label or None)
        ladder.set(xscale="log", title="Loss against compute", xlabel="training FLOPs", ylabel="nats a byte")
        ladder.legend()
        by_place = found["by place"]
        for each, colour, label in ((by_place, TRANSFORMER, "Transformer"), (found[by_place["run"]], LSTM, "LSTM")):
            means = smoothed(np.array(each["places"]))
            places.plot(np.arange(1, len(means) + 1), means, color=colour, label=label)
        places.set(xscale="log", title="Loss by place in the row", xlabel="bytes read before", ylabel="nats a byte")
        places.legend()
        for kind, colour in (("LSTM", LSTM), ("Transformer", TRANSFORMER)):
            if f"copying, {kind}" not in found:
                continue
            accuracy = {int(gap): 100 * share for gap, share in found[f"copying, {kind}"]["accuracy"].items()}
            copying.plot(list(accuracy), list(accuracy.values()), "o-", color=colour, label=kind, ms=4)
        copying.axhline(100 / 26, color=INK, lw=0.8, ls=":")
        copying.set(title="Copying 8 letters", xlabel="tokens between the two", ylabel="letters that are right, %")
        copying.set_ylim(0, 104)
        copying.legend(loc="center right")
    return Drawing("lstm", "Loss and copying of an LSTM and of a Transformer of equal size.", figure)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Means over windows that grow with the place, so that a logarithmic axis has no noise at its end."""
    ends = [(max(0, round(i / 1.15)), max(i + 1, round(i * 1.15))) for i in range(len(values))]
    return np.array([values[a:b].mean() for a, b in ends])


def table(found: Mapping[str, Any], runs: Mapping[str, Any]) -> str:
    """Markdown: a line for each size and budget."""
    lines = ["| budget | parameters | Transformer | LSTM | difference |", "|---|---|---|---|---|"]
    for flops, group in itertools.groupby(runs.items(), key=lambda each: f"{each[1]['flops']:.1e}"):
        for name, run in group:
            lstm = found[name]
            gap = lstm["loss"] - run["loss"]
            cells = flops, f"{lstm['parameters']:,}", f"{run['loss']:.3f}", f"{lstm['loss']:.3f}", f"{gap:+.3f}"
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
