"""How often one of two models wins, and how much of that length and order explain."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

_Z = 1.959963984540054  # of a normal distribution: 95 % lie within
_ABOUT = 0.1  # two lengths whose difference is at most this share of the longer are about equal


class Comparison(NamedTuple):
    """One prompt that two models answered.

    Attributes:
        won: what A won: 1, 0, or 0.5 of a tie.
        lengths: of the answers of A and B, in characters.
        verdicts: of a judge that was asked in both orders: what A won when it was read first, and when it was read
            second; empty = it was asked once.
    """

    won: float
    lengths: tuple[int, int]
    verdicts: tuple[float, ...] = ()


def interval(won: float, count: int) -> tuple[float, float]:
    """The 95 % interval of Wilson (1927) of a share, of which ``won`` of ``count`` were seen.

    Ties, which count as half, make it wider than it need be, because they vary less than wins and losses.
    """
    share, spread = won / count, _Z**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def summary(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """The win rate of A with its interval, and what a judge of lengths alone would have said.

    Returns:
        "prompts", "wins", "losses" and "ties" of A; "win_rate", with ties as half; "interval" (see ``interval``).
        "length" has the mean characters of both, "mean_a" and "mean_b"; "baseline", the win rate of A if the longer
        answer always won; "longer_won", the share of the comparisons that the longer answer won, among those, "decided"
        in number, that are no ties and have different lengths (None: there is none); and "equal", the count, win rate
        and interval of answers of about equal length.
        "order", of a judge that was asked in both, has the share of comparisons whose verdict changed ("flips"), and
        the share of the verdicts that are no ties for the answer that was read first ("first_won"; None: all are ties).
    """
    won = [each.won for each in comparisons]
    assert won, "there is something to compare"
    of_a, of_b = zip(*(each.lengths for each in comparisons), strict=True)
    longer = [_half(a, b) for a, b in zip(of_a, of_b, strict=True)]
    decided = [(w, by) for w, by in zip(won, longer, strict=True) if w != 0.5 and by != 0.5]
    equal = [each.won for each in comparisons if _about_equal(*each.lengths)]
    found = {
        "prompts": len(won),
        "wins": won.count(1.0),
        "losses": won.count(0.0),
        "ties": won.count(0.5),
        **_rate(won),
        "length": {
            "mean_a": sum(of_a) / len(won),
            "mean_b": sum(of_b) / len(won),
            "baseline": sum(longer) / len(won),
            "decided": len(decided),
            "longer_won": _share([w == by for w, by in decided]),
            "equal": {"prompts": len(equal), **(_rate(equal) if equal else {"win_rate": None, "interval": None})},
        },
    }
    asked = [each.verdicts for each in comparisons if each.verdicts]
    if asked:
        for_first = [verdict for first, second in asked for verdict in (first, 1 - second) if verdict != 0.5]
        found["order"] = {
            "flips": _share([first != second for first, second in asked]),
            "first_won": _share([verdict == 1 for verdict in for_first]),
        }
    return found


def _rate(won: Sequence[float]) -> dict[str, Any]:
    return {"win_rate": sum(won) / len(won), "interval": list(interval(sum(won), len(won)))}


def _share(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def _half(a: float, b: float) -> float:
    """What A wins if more is better."""
    return 0.5 if a == b else float(a > b)


def _about_equal(a: int, b: int) -> bool:
    return abs(a - b) <= _ABOUT * max(a, b)


def table(found: dict[str, Any]) -> str:
    """A summary as text; "a", "b", and "reward" or "command" say what was compared and how."""
    length, equal = found["length"], found["length"]["equal"]
    judge = f"the reward {found['reward']}" if "reward" in found else f"the program {found['command']}"
    lines = [
        f"A: {found['a']}",
        f"B: {found['b']}",
        f"judge: {judge}",
        f"win rate of A: {_with_interval(found)}; ties count half",
        f"{found['wins']} wins, {found['losses']} losses and {found['ties']} ties of {found['prompts']} prompts",
        f"length: {length['mean_a']:.0f} characters of A and {length['mean_b']:.0f} of B in the mean; if the longer "
        f"answer always won, A would win {length['baseline']:.1%}",
        f"the longer answer won {_percent(length['longer_won'])} of the {length['decided']} decided comparisons of "
        "different lengths",
        f"among {equal['prompts']} answers of about equal length (within {_ABOUT:.0%}): "
        + (_with_interval(equal) if equal["prompts"] else "no win rate"),
    ]
    if "order" in found:
        order = found["order"]
        lines.append(
            f"order: {_percent(order['flips'])} of the verdicts change with it and count as ties; the answer that is "
            f"read first wins {_percent(order['first_won'])} of those that are no ties"
        )
    return "\n".join(lines)


def _with_interval(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['win_rate']:.1%} (95 % interval of Wilson: {low:.1%} to {high:.1%})"


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{share:.1%}"
