"""Rules for learning rate and batch: GPT-3's table, interpolated, and powers of a size."""

import itertools
import math
from typing import Literal

from scaling.catalog.sizes import GPT3
from scaling.config.refusal import shown
from scaling.sweep.plan import Rule, Scale


def gpt3_peak_lr(scale: Scale) -> float:
    """Peak learning rate of arXiv 2005.14165, table 2.1, interpolated in log N.

    N is the active parameters, which are all parameters where there are no experts. Outside the table
    the rate continues as a power of N, with the exponent of the whole table (about -0.32).
    """
    return _interpolate([(s.printed_parameters, s.peak_lr) for s in GPT3.values() if s.peak_lr], scale.params.active)


def gpt3_batch_tokens(scale: Scale) -> float:
    """Batch in tokens of arXiv 2005.14165, table 2.1, interpolated and continued like ``gpt3_peak_lr``.

    Below 125M parameters it is too large for short runs, because the useful batch also grows during training.
    """
    return _interpolate([(s.printed_parameters, s.batch_tokens) for s in GPT3.values()], scale.params.active)


def power(
    coefficient: float,
    exponent: float,
    of: Literal["params", "tokens", "flops"] = "params",
    between: tuple[float, float] = (0, math.inf),
) -> Rule:
    """coefficient * X^exponent, kept ``between`` two limits.

    X = params: active parameters but embeddings; tokens: the run's; flops: the run's. Examples: for C, arXiv
    2401.02954, section 3.1, found a learning rate of 0.3118 C^-0.1250 and a batch of 0.2920 C^0.3271 tokens.
    """
    if of not in ("params", "tokens", "flops"):
        raise ValueError(f"power(..., of={shown(of)}) must be of 'params', 'tokens' or 'flops'")

    def rule(scale: Scale) -> float:
        sizes = {
            "params": scale.params.without_embeddings - scale.params.idle,
            "tokens": scale.tokens,
            "flops": scale.flops,
        }
        return min(max(coefficient * sizes[of] ** exponent, between[0]), between[1])

    return rule


def _interpolate(table: list[tuple[float, float]], size: float) -> float:
    """Piecewise linear in logarithms; outside, along the least-squares slope of the whole table."""
    points = sorted((math.log(x), math.log(y)) for x, y in table)
    xs, ys = zip(*points, strict=True)
    x = math.log(size)
    if not xs[0] <= x <= xs[-1]:
        mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
        slope = sum((a - mean_x) * (b - mean_y) for a, b in points) / sum((a - mean_x) ** 2 for a in xs)
        end = points[0] if x < xs[0] else points[-1]
        return math.exp(end[1] + slope * (x - end[0]))
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x <= x1:
            return math.exp(y0 + (y1 - y0) * (x - x0) / (x1 - x0))
    raise AssertionError(size)
