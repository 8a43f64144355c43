"""Fits and predictions as text."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from scaling.laws.fit import Fit
from scaling.laws.frontier import QUANTITIES, Frontier
from scaling.laws.isoflop import made_of

_LETTERS = {"params": "N*", "tokens": "D*", "loss": "L*"}


def law_to_text(fit: Fit) -> str:
    """Parameters with intervals, the objective, the held-out run, outliers and warnings."""
    law = fit.law
    lines = [
        f"{law.formula}, {fit.num_points} points, delta {fit.delta:g} in the {'log ' * (fit.error == 'log')}loss",
        "",
    ]
    for name, value in fit.theta.items():
        line = f"  {name:<8} {value:>10.5g}"
        if name in fit.intervals:
            line += "   [{:.5g}, {:.5g}]".format(*fit.intervals[name])
        if name in law.logs:
            line += f"   {law.logs[name]} = {np.exp(value):.4g}"
        lines.append(line)
    lines += [
        "",
        f"objective {fit.objective:.6g} (sum of Huber terms); {fit.starts_at_best:.0%} of the starts end there",
    ]
    if fit.intervals:
        lines.append(f"intervals: 95 %, {len(fit.draws)} bootstrap resamples")
    if fit.held_out:
        lines.append("largest run left out: " + _error(fit.held_out["name"], fit.held_out))
    if fit.outliers:
        done = "left out of the fit" if fit.outliers_dropped else "kept (--drop_outliers leaves them out)"
        lines.append(f"outliers, {done}: {', '.join(fit.outliers)}")
    return "\n".join([*lines, *_notes(fit.left_out, fit.warnings)])


def frontier_to_text(fit: Frontier) -> str:
    """The three power laws with intervals, the optima they go through, and what was left out."""
    lines = [f"compute-optimal runs by {fit.form}, {fit.num_points} points", ""]
    for quantity in QUANTITIES:
        k, exponent = fit.theta[f"log_k_{quantity}"], fit.theta[f"{quantity}_exponent"]
        line = f"  {_LETTERS[quantity]} = {np.exp(k):.4g} C^{exponent:.4f}"
        if fit.intervals:
            line += "   [{:.4f}, {:.4f}]".format(*fit.intervals[f"{quantity}_exponent"])
        lines.append(line)
    if fit.intervals:
        lines += ["", f"intervals of the exponents: 95 %, {len(fit.draws)} resamples"]
    if fit.how:
        lines += ["", *made_of(fit)]
    # Of isoFLOP minima with the sizes that the curve of each budget goes by.
    fitted = {c["flops"]: [size["state"] == "fitted" for size in c["sizes"]] for c in fit.curves if not c["reason"]}
    sizes = [f"  {sum(each)} of {len(each)}" for each in fitted.values()] or [""] * len(fit.optima)
    lines += ["", "  FLOPs     N*        D*        L*" + "      sizes fitted" * bool(fitted)]
    lines += [
        f"  {o['flops']:.2e}  {o['params']:.2e}  {o['tokens']:.2e}  {o['loss']:.4f}{shown}"
        for o, shown in zip(fit.optima, sizes, strict=True)
    ]
    if fit.held_out:
        lines.append(f"\nlargest left out, {fit.held_out['name']}:")
        lines += [_error(f"  {_LETTERS[quantity]}", fit.held_out[quantity]) for quantity in QUANTITIES]
    lines += [f"outlier, not fitted: {sentence}" for sentence in fit.outliers]
    return "\n".join([*lines, *_notes(fit.left_out, fit.warnings)])


def prediction_to_text(prediction: Mapping[str, Any]) -> str:
    """One line a quantity, then the smaller models that reach the same loss."""
    lines = []
    for name in ("flops", "params", "tokens", "loss"):
        if name in prediction:
            value, low, high = (prediction[name][key] for key in ("value", "low", "high"))
            interval = "" if low == high == value else f"   [{low:.4g}, {high:.4g}]"
            lines.append(f"  {name:<7} {value:.4g}{interval}")
    if "overtrained" in prediction:
        lines.append("the same loss from a smaller model:")
        for row in prediction["overtrained"]:
            if row["tokens"] is None:
                lines.append(f"  {row['params']:.3g} parameters: never")
            else:
                tokens, ratio = row["tokens"], row["flops_ratio"]
                lines.append(f"  {row['params']:.3g} parameters: {tokens:.3g} tokens, {ratio:.2f} times the FLOPs")
    return "\n".join(lines)


def _error(name: str, held_out: Mapping[str, Any]) -> str:
    observed, predicted = held_out["observed"], held_out["predicted"]
    return f"{name} predicted {predicted:.4g}, observed {observed:.4g}, off by {held_out['error_percent']:+.2f} %"


def _notes(left_out: tuple[str, ...], warnings: tuple[str, ...]) -> list[str]:
    return [f"left out: {sentence}" for sentence in left_out] + [f"warning: {sentence}" for sentence in warnings]
