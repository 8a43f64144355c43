"""The sentences that refuse a knob: its name, its value, what would be right, and the nearest such values."""

from collections.abc import Iterable
from typing import Any

_LONGEST = 100  # characters of a user's value in a message


def must_be_multiple(name: str, value: int, divisor: int, what: str) -> None:
    """Refuses a knob whose value is no multiple; ``what`` is a knob, or says where the divisor comes from."""
    if value % divisor:
        shown = f"{what}={divisor}" if what.startswith("config.") else what
        near = nearest_multiples(value, divisor)
        raise refused(name, value, f"must be a multiple of {shown}, as {near} would be")


def must_divide(name: str, divisor: int, what: str, value: int) -> None:
    """Refuses a knob, the divisor, that does not divide the value of the knob ``what``."""
    if value % divisor:
        near = nearest_divisors(value, divisor)
        raise refused(name, divisor, f"must divide config.{what}={value}, as {near} would")


def nearest_multiples(value: int, divisor: int) -> str:
    """The multiples around a value, in words."""
    below = value // divisor * divisor
    return _either(x for x in (below, below + divisor) if x)


def nearest_divisors(value: int, near: int) -> str:
    """The two divisors of a value that are nearest to another, in words."""
    divisors = [d for d in range(1, value + 1) if value % d == 0] if value < 10**7 else [1]
    return _either(sorted(sorted(divisors, key=lambda d: abs(d - near))[:2]))


def _either(values: Iterable[int]) -> str:
    return " or ".join(str(v) for v in values)


def refused(name: str, value: Any, why: str) -> ValueError:
    """The error that names a knob (without ``config.``) and its value, and says why."""
    return ValueError(f"config.{name}={shown(value)} {why}")


def shown(value: Any) -> str:
    """A value as Python writes it, cut to the length that a sentence bears; of many digits only how many."""
    if isinstance(value, int) and abs(value) >= 10**30:
        return f"{'-' * (value < 0)}a number of about {round(abs(value).bit_length() / 3.3219)} digits"
    return cut(repr(value))


def kind(value: Any) -> str:
    """What a value is where it should be something else altogether: its type, with an article."""
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def cut(text: str, most: int = _LONGEST) -> str:
    """The beginning of a text that may be long, at most so many characters."""
    return text if len(text) <= most else f"{text[: most - 3]}..."
