"""Constraints that a program can verify in a text: the 25 kinds of IFEval (arXiv 2311.07911). It imports no JAX.

``follows`` serves evaluation, and as a reward. ``checks.CONSTRAINTS`` names the kinds.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from scaling.evaluate.constraints.checks import CONSTRAINTS

IDS = tuple(CONSTRAINTS)


def follows(instruction_id: str, kwargs: Mapping[str, Any], response: str) -> bool:
    """Whether a response satisfies a constraint; an empty one satisfies none.

    Args:
        instruction_id: one of ``IDS``.
        kwargs: what the constraint is told, as in IFEval's data; those that are None count as absent.
        response: the text.

    Raises:
        ValueError: as ``check``.
    """
    told = check(instruction_id, kwargs)
    return bool(response.strip()) and CONSTRAINTS[instruction_id].check(response, **told)


def loosely_follows(instruction_id: str, kwargs: Mapping[str, Any], response: str) -> bool:
    """Whether the response follows, or does so without asterisks, its first line, its last line, or several of these.

    Raises:
        ValueError: as ``check``.
    """
    return any(follows(instruction_id, kwargs, variant) for variant in _variants(response))


def _variants(response: str) -> Iterator[str]:
    lines = response.split("\n")
    whole = (response, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])))
    for text in whole:
        yield text
        yield text.replace("*", "")


def check(instruction_id: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a constraint is told, without absent values.

    Raises:
        ValueError: no such constraint, or a keyword that is missing, unknown or of a wrong type.
    """
    if instruction_id not in CONSTRAINTS:
        raise ValueError(f"{instruction_id!r} is no constraint; there are {', '.join(IDS)}")
    takes = CONSTRAINTS[instruction_id].takes
    told = {name: value for name, value in kwargs.items() if value is not None}
    for name in (*takes, *told):
        if name not in told or name not in takes:
            has = f"takes {', '.join(takes)}" if takes else "takes nothing"
            what = "is missing" if name not in told else "is unknown"
            raise ValueError(f"{instruction_id} {has}; {name} {what}")
    for name, kind in takes.items():
        if not _fits(told[name], kind):
            raise ValueError(f"{instruction_id}: {name} must be {_wanted(kind)}, not {told[name]!r}")
    return {name: int(value) if takes[name] is int else value for name, value in told.items()}


def _fits(value: Any, kind: type | tuple[str, ...]) -> bool:
    if isinstance(kind, tuple):
        return value in kind
    if kind is int:  # some files have 3.0 for 3
        return type(value) in (int, float) and value >= 0 and value == int(value)
    if kind is list:
        return isinstance(value, list) and bool(value) and all(_fits(each, str) for each in value)
    return isinstance(value, str) and bool(value.strip())


def _wanted(kind: type | tuple[str, ...]) -> str:
    if isinstance(kind, tuple):
        return f"one of {', '.join(kind)}"
    return {int: "a whole number from 0", list: "a list of texts", str: "a text"}[kind]
