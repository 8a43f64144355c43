"""What ``scaling bias`` found about one model: the data, its table for a terminal, its JSON."""

import dataclasses
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from scaling.evaluate.bias import words as bias
from scaling.evaluate.bias.words import Favoured, OccupationBias
from scaling.evaluate.scoring.metrics import error_text, finite

NOTHING = f"no word occurs {bias.LEAST} times or more and more often than with the other groups"

_WIDTH = 110  # of the table
_ENDS = 6  # occupations shown at either end
_MEANT = {"0": "the occupation is meant", "1": "the other person is meant"}  # Winogender's answers


@dataclasses.dataclass(frozen=True)
class Group:
    """What a probe found about one of its groups.

    Attributes:
        samples: number of texts.
        favoured: words that occur with the group more often than with the others, the most biased first.
        sentiment: mean of all its favoured words, -100 to 100. NaN without a lexicon, or if it has none of the words.
    """

    samples: int
    favoured: tuple[Favoured, ...]
    sentiment: float


@dataclasses.dataclass(frozen=True)
class Breakdown:
    """Accuracy on a task by the values of some of its fields.

    Attributes:
        keys: names of the fields.
        parts: their values -> items, accuracy, standard error.
    """

    task: str
    shots: int
    keys: tuple[str, ...]
    parts: Mapping[tuple[str, ...], tuple[int, float, float]]


@dataclasses.dataclass(frozen=True)
class Report:
    """What was found about one model; ``settings`` says how the samples were drawn."""

    model: str
    step: int | None
    tokens: int | None
    settings: Mapping[str, Any]
    probes: Mapping[str, Mapping[str, Group]]  # probe -> group
    occupations: Mapping[str, OccupationBias]  # variant of the prompt
    tasks: Sequence[Breakdown]

    @property
    def has_sentiment(self) -> bool:
        """Whether there was a lexicon."""
        return self.settings["lexicon"] is not None


def to_json(report: Report) -> dict[str, Any]:
    """The report as objects for ``json.dumps``; NaN is None."""
    return {
        "model": report.model,
        "step": report.step,
        "tokens": report.tokens,
        "settings": dict(report.settings),
        "probes": {
            probe: {
                name: dataclasses.asdict(group) | {"sentiment": finite(group.sentiment)}
                for name, group in groups.items()
            }
            for probe, groups in report.probes.items()
        },
        "occupations": {
            variant: {"mean": found.mean, "error": finite(found.error), "male": found.male, "log_ratios": found.ratios}
            for variant, found in report.occupations.items()
        },
        "tasks": [
            {
                "task": part.task,
                "shots": part.shots,
                "by": list(part.keys),
                "accuracy": [
                    dict(zip(part.keys, values, strict=True)) | {"count": count, "mean": mean, "error": finite(error)}
                    for values, (count, mean, error) in part.parts.items()
                ],
            }
            for part in report.tasks
        ],
    }


def table(report: Report) -> str:
    """The report as lines for a terminal."""
    trained = "" if report.step is None else f", step {report.step:,}, {report.tokens:,} tokens"
    lines = [f"{report.model}{trained}"]
    for probe, groups in report.probes.items():
        lines += [f"  {probe}: words by how many times as often they occur as with the other groups (occurrences)"]
        width = max(map(len, groups))
        for name, group in groups.items():
            start = f"    {label(name):<{width}}  "
            lines += textwrap.wrap(
                _group(group, report.has_sentiment), _WIDTH, initial_indent=start, subsequent_indent=" " * len(start)
            )
        if not all(group.favoured for group in groups.values()):
            lines += [f"    none: {NOTHING}; more --samples may help"]
    if report.occupations:
        lines += ["  occupations: log P(female) / P(male), mean over occupations; below 0 male is likelier"]
        width = max(map(len, report.occupations))
        for variant, found in report.occupations.items():
            ratio = f"{found.mean:+.3f} ± {error_text(found.error)}"
            lines += [f"    {variant:<{width}}  {ratio}, {found.male:.0%} lean to male"]
        first = next(iter(report.occupations))
        order = sorted(report.occupations[first].ratios, key=report.occupations[first].ratios.__getitem__)
        for side, names in (("male", order[:_ENDS]), ("female", order[: -_ENDS - 1 : -1])):
            lines += [f"    most to {side} ({first}): {', '.join(names)}"]
    for part in report.tasks:
        lines += [f"  {part.task}, {part.shots} shots: accuracy by {' and '.join(map(label, part.keys))}"]
        names = [", ".join(map(_value, part.keys, values)) for values in part.parts]
        for name, (count, mean, error) in zip(names, part.parts.values(), strict=True):
            lines += [f"    {name:<{max(map(len, names))}}  {mean:.3f} ± {error_text(error)}  ({count:,} items)"]
    return "\n".join(lines)


def label(name: str) -> str:
    """A name of a group or a field, for people."""
    return name.replace("_", " ")


def _value(key: str, value: str) -> str:
    return _MEANT.get(value, value) if key == "answer" else value


def _group(group: Group, has_sentiment: bool) -> str:
    shown = [f"{word.word} ×{word.ratio:.3g} ({word.count})" for word in group.favoured]
    text = f"{group.samples:,} samples: {', '.join(shown) or 'none'}"
    if not has_sentiment:
        return text
    feeling = f"{group.sentiment:+.1f}" if math.isfinite(group.sentiment) else "unknown, no word is in the lexicon"
    return f"{text}; sentiment {feeling}"
