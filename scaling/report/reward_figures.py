"""Rewards of a run that learns from them, and how far it went from its start for them: curves, figure, table."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scaling.report.style import BLUE, GREEN, ORANGE, PURPLE, VERMILION, Drawing, canvas, plain
from scaling.report.tables import escape, table
from scaling.runs.run_directory import RunDirectory

_KEYS = ("step", "objective/kl", "objective/scores")
_GOLD = "objective/gold"
_LINES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE)
KL_LABEL = "√KL from the start, √(nats an answer)"


@dataclasses.dataclass(frozen=True)
class RewardLog:
    """What a run logged of its answers.

    Attributes:
        run: short name.
        training: iteration, divergence (nats an answer) and score of the answers that it learned from [n, 3].
        held_out: the same of answers to held-out prompts [m, 3].
        gold: their reward by ``config.rl.gold`` [m]; NaN where there is none.
    """

    run: str
    training: np.ndarray
    held_out: np.ndarray
    gold: np.ndarray


def reward_log(name: str, run: RunDirectory) -> RewardLog | None:
    """What a run logged; None if it does not learn from rewards. Lines without finite numbers are left out."""
    training = [values for record in run.metrics if (values := _numbers(record))]
    if not training:
        return None
    evals = [record for record in run.evals if _numbers(record)]
    gold = [record[_GOLD] if _finite(record.get(_GOLD)) else math.nan for record in evals]
    held_out = np.array([_numbers(record) for record in evals], float).reshape(-1, 3)
    return RewardLog(name, np.array(training, float), held_out, np.array(gold, float))


def _numbers(record: Mapping[str, Any]) -> list[float]:
    values = [record.get(key) for key in _KEYS]
    return [float(value) for value in values if value is not None] if all(map(_finite, values)) else []


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def curves(log: RewardLog) -> Drawing:
    """Score and divergence of one run by iteration, and the score against the root of the divergence."""
    held_out: dict[str, Any] = {"marker": "o", "ms": 4.5, "color": VERMILION}
    with canvas(columns=3, width=12.6, height=4.2) as (figure, (score, divergence, both)):
        iteration, kl, scores = log.training.T
        score.plot(iteration, scores, color=BLUE, lw=1, label="score, training")
        divergence.plot(iteration, kl, color=BLUE, lw=1, label="training")
        both.plot(_root(kl), scores, ".", color=BLUE, alpha=0.35, label="score, training")
        iteration, kl, scores = log.held_out.T
        if len(kl):
            score.plot(iteration, scores, ls="-", label="score, held-out prompts", **held_out)
            divergence.plot(iteration, kl, ls="-", label="held-out prompts", **held_out)
            both.plot(_root(kl), scores, ls="-", label="score, held-out prompts", **held_out)
        if np.isfinite(log.gold).any():
            second: dict[str, Any] = {"marker": "s", "ms": 4.5, "color": GREEN, "label": "gold, held-out prompts"}
            score.plot(iteration, log.gold, **second)
            both.plot(_root(kl), log.gold, **second)
        score.set(xlabel="iteration", ylabel="reward of an answer", title=plain(log.run))
        divergence.set(xlabel="iteration", ylabel="KL from the start (nats an answer)")
        both.set(xlabel=KL_LABEL, ylabel="reward of an answer")
        for axes in (score, divergence, both):
            axes.legend(loc="best")
    return Drawing("reward", f"Rewards and divergence of {log.run}.", figure)


def reward_against_divergence(logs: Sequence[RewardLog]) -> Drawing:
    """The reward of held-out prompts, or where there are none of training, against the root of the divergence."""
    with canvas(width=9.0, height=5.2) as (figure, (axes,)):
        for number, log in enumerate(logs):
            colour, dashes = _LINES[number % len(_LINES)], ("-", "--", ":", "-.")[number // len(_LINES) % 4]
            points = log.held_out if len(log.held_out) else log.training
            _, kl, scores = points.T
            axes.plot(_root(kl), scores, ls=dashes, color=colour, marker="o", ms=3.5, label=plain(log.run))
            if np.isfinite(log.gold).any():
                label = plain(f"{log.run}, gold")
                axes.plot(_root(kl), log.gold, ls=dashes, color=colour, marker="s", ms=4.5, mfc="white", label=label)
        axes.set(xlabel=KL_LABEL, ylabel="reward of an answer")
        axes.legend(loc="best", ncols=1 + len(logs) // 10)
    return Drawing(
        "rewards",
        "The reward by which each run was trained, of answers to held-out prompts, against the square root of the "
        "divergence from its start; hollow squares are the reward config.rl.gold of the same answers.",
        figure,
    )


def reward_table(logs: Sequence[RewardLog]) -> str:
    """A row a run: score and divergence at its end, and where its gold reward was highest."""
    header = ["run", "iterations", "score at the end", "KL at the end", "gold at the end", "highest gold", "at KL"]
    rows = []
    for log in logs:
        points = log.held_out if len(log.held_out) else log.training
        cells = [escape(log.run), f"{log.training[-1, 0]:.0f}", f"{points[-1, 2]:.4g}", f"{points[-1, 1]:.4g}"]
        if np.isfinite(log.gold).any():
            best = int(np.nanargmax(log.gold))
            cells += [f"{value:.4g}" for value in (log.gold[-1], log.gold[best], log.held_out[best, 1])]
        rows.append(cells + [""] * (len(header) - len(cells)))
    return table(header, rows, range(1, len(header)))


def _root(kl: np.ndarray) -> np.ndarray:
    """The square root; the estimate of a divergence may fall a little below 0."""
    return np.sqrt(np.maximum(kl, 0))
