"""Messages that refuse a knob: they give its name, its value, what would be right, and the nearest right values."""

from collections.abc import Iterable
from typing import Any

_LONGEST = 100  # characters of a user's value in a message


def must_be(knobs: Iterable[tuple[str, Any, Any]], why: str) -> None:
    """Refuses the first of some knobs, each with its value and the right one, that has another value.

    Args:
        knobs: (name without ``config.``, value, the one right value) of each.
        why: what they must be so with, such as "with config.model.causal=False".
    """
    for name, value, right in knobs:
        if value != right:
            raise refused(name, value, f"must be {right!r} {why}")


def must_be_multiple(name: str, value: int, divisor: int, what: str) -> None:
    """Refuses a knob whose value is no multiple of ``divisor``; ``what`` is a knob, or explains the divisor."""
    if value % divisor:
        shown = f"{what}={divisor}" if what.startswith("config.") else what
        near = nearest_multiples(value, divisor)
        raise refused(name, value, f"must be a multiple of {shown}, as {near} would be")


def must_divide(name: str, divisor: int, what: str, value: int) -> None:
    """Refuses the knob ``name`` whose value ``divisor`` does not divide that of the knob ``what``."""
    if value % divisor:
        near = nearest_divisors(value, divisor)
        raise refused(name, divisor, f"must divide config.{what}={value}, as {near} would")


def nearest_multiples(value: int, divisor: int) -> str:
    """The multiples just below and above a value, in words."""
    below = value // divisor * divisor
    return _either(x for x in (below, below + divisor) if x)


def nearest_divisors(value: int, near: int) -> str:
    """The two divisors of a value that are nearest to the number ``near``, in words."""
    divisors = [d for d in range(1, value + 1) if value % d == 0] if value < 10**7 else [1]
    return _either(sorted(sorted(divisors, key=lambda d: abs(d - near))[:2]))


def _either(values: Iterable[int]) -> str:
    return " or ".join(str(v) for v in values)


def refused(name: str, value: Any, why: str) -> ValueError:
    """The error for a knob (``name`` is without ``config.``) with its value and the reason."""
    return ValueError(f"config.{name}={shown(value)} {why}")


def shown(value: Any) -> str:
    """A value as Python writes it, cut if it is too long for a message; a very long number as its count of digits."""
    if isinstance(value, int) and abs(value) >= 10**30:
        return f"{'-' * (value < 0)}a number of about {round(abs(value).bit_length() / 3.3219)} digits"
    return cut(repr(value))


def kind(value: Any) -> str:
    """The type of a value with an article, for messages about a value of a wrong type."""
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def cut(text: str, most: int = _LONGEST) -> str:
    """A text cut to at most so many characters."""
    return text if len(text) <= most else f"{text[: most - 3]}..."
