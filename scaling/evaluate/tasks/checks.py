"""What a task file must satisfy beyond keys and types: names that exist, templates that have their fields."""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator

from scaling.evaluate.tasks.synthetic import KINDS_OF
from scaling.evaluate.tasks.task import (
    EDITS,
    FORMATS,
    GENERATORS,
    KINDS,
    MEASURES,
    METRICS,
    NORMALISATIONS,
    Field,
    Source,
    Task,
    nearest,
    placeholders,
)

_KEYS = {"lines": ("line",), "labelled_lines": ("label", "text"), "text": ("text",)}  # format -> keys of its records
_ALIKE = 0.8  # difflib's ratio of names, from which on one is taken for the other mistyped


def check(task: Task, scoring_keys: set[str]) -> None:
    """Refuses a task that cannot work.

    Args:
        task: as read.
        scoring_keys: the keys that stand in ``[scoring]``.

    Raises:
        ValueError: says the file, the key and what would be right.
    """
    _scoring(task, scoring_keys)
    _one_of(task, "measures", task.measures, MEASURES)
    known = []
    if task.generator is not None:
        _one_of(task, "generator.name", task.generator.name, GENERATORS)
        _one_of(task, "generator.kind", task.generator.kind, KINDS_OF[task.generator.name])
        if task.generator.count < 1 or task.generator.demonstrations < 0:
            raise ValueError(f"{task.path}: generator.count must be at least 1, generator.demonstrations at least 0")
        known.append(set(GENERATORS[task.generator.name]))
    for source in task.sources:
        _source(task, source)
        known.append(set(source.fields))
    fields = set.intersection(*known)
    for where, name in _used(task):
        if name not in fields:
            raise ValueError(f"{task.path}: {where}, {_unknown(name, fields, known)}")
    for where, prompt in (("prompt", task.prompt), ("zero_shot", task.zero_shot)):
        if prompt.context != prompt.context.rstrip():
            raise ValueError(
                f"{task.path}: {where}.context ends in white space; the space before a completion is put there for you"
            )


def with_own_keys(task: Task) -> Task:
    """The task with fields for the keys of the record itself that it uses and that no table of fields has.

    A name that is spelt much like one in a table is no such key, but a mistake, which ``check`` then finds. Which keys
    a record has is known beforehand only of some formats.
    """
    tables = {name for source in task.sources for name in source.fields}
    sources = []
    for source in task.sources:
        names = [*(name for _, name in _used(task)), *source.keep]
        keys = _KEYS.get(source.format, source.columns)
        keys = (*keys, *source.test.aligned) if keys else ()
        if source.fields:
            new = [n for n in names if n not in tables and not difflib.get_close_matches(n, tables, 1, _ALIKE)]
            own = [name for name in new if not keys or name in keys]
        else:
            own = list(keys or names)
        fields = {name: Field(path=name) for name in own} | dict(source.fields)
        sources.append(dataclasses.replace(source, fields=fields))
    return dataclasses.replace(task, sources=tuple(sources))


def _unknown(name: str, fields: set[str], known: list[set[str]]) -> str:
    if any(name in some for some in known):
        return "which one of its sources does not define"
    return (
        f"which its sources do not define; did you mean {nearest(name, fields)!r}?" if fields else "but has no fields"
    )


def _one_of(task: Task, key: str, value: str, known: Iterable[str]) -> None:
    names = list(known)
    if not value:
        raise ValueError(f"{task.path}: {key} is missing; it is one of {', '.join(names)}")
    if value not in names:
        raise ValueError(f"{task.path}: {key} = {value!r} is unknown; did you mean {nearest(value, names)!r}?")


def _scoring(task: Task, keys: set[str]) -> None:
    scoring = task.scoring
    _one_of(task, "scoring.kind", scoring.kind, KINDS)
    required, optional = KINDS[scoring.kind]
    for key in required:
        if not getattr(scoring, key):
            raise ValueError(f"{task.path}: scoring.{key} is missing; kind = {scoring.kind!r} needs it")
    for key in sorted(keys - {"kind", *required, *optional}):
        fitting = (*required, *optional)
        more = f"; it takes {', '.join(fitting)}" if fitting else ""
        raise ValueError(f"{task.path}: scoring.{key} has no meaning with kind = {scoring.kind!r}{more}")
    if scoring.normalisation:
        _one_of(task, "scoring.normalisation", scoring.normalisation, NORMALISATIONS[scoring.kind])
    if (scoring.normalisation == "unconditional") != bool(scoring.answer_context):
        raise ValueError(
            f"{task.path}: scoring.answer_context belongs to normalisation = 'unconditional', which needs it"
        )
    if not task.metrics:
        raise ValueError(f"{task.path}: metrics is empty")
    for metric in task.metrics:
        _one_of(task, f"metrics of kind {scoring.kind!r}", metric, METRICS[scoring.kind])
    if min(scoring.beams, scoring.max_tokens) < 1:
        raise ValueError(f"{task.path}: scoring.beams and scoring.max_tokens must be at least 1")
    if task.few_shot < 0:
        raise ValueError(f"{task.path}: few_shot = {task.few_shot} must not be negative")
    for key in ("extract", "remove"):
        _pattern(task, f"scoring.{key}", getattr(scoring, key))


def _source(task: Task, source: Source) -> None:
    _one_of(task, "source.format", source.format, FORMATS)
    if source.records and source.format not in ("json", "xml"):
        raise ValueError(f"{task.path}: source.records belongs to json and xml, not to {source.format}")
    if source.columns and source.format not in ("csv", "tsv", "blocks"):
        raise ValueError(f"{task.path}: source.columns belongs to csv, tsv and blocks, not to {source.format}")
    if source.format == "blocks" and not source.columns:
        raise ValueError(f"{task.path}: source.columns is missing; blocks need the names of their lines")
    for name, field in source.fields.items():
        _field(task, f"source.fields.{name}", field)
    for name, pattern in source.keep.items():
        if name not in source.fields:
            near = f"did you mean {nearest(name, source.fields)!r}?" if source.fields else "it has none"
            raise ValueError(f"{task.path}: source.keep.{name} is not one of its fields; {near}")
        _pattern(task, f"source.keep.{name}", pattern)


def _field(task: Task, where: str, field: Field) -> None:
    for edit in field.edits:
        _one_of(task, f"{where}.edits", edit, EDITS)
    for key in ("remove", "match", "match_all"):
        _pattern(task, f"{where}.{key}", getattr(field, key))


def _pattern(task: Task, where: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{task.path}: {where} is not a regular expression: {error}") from None


def _used(task: Task) -> Iterator[tuple[str, str]]:
    """The fields that a task uses, each behind what says so."""
    for where, template in _templates(task):
        for name in placeholders(template):
            yield f"{where} uses {{{name}}}", name
    for where, name in _lists(task):
        yield f"{where} names the field {name!r}", name


def _templates(task: Task) -> Iterator[tuple[str, str]]:
    for where, prompt in (("prompt", task.prompt), ("zero_shot", task.zero_shot)):
        yield f"{where}.context", prompt.context
    for key in ("choices", "contexts", "labels", "completion", "target", "gold"):
        value = getattr(task.scoring, key)
        for template in (value,) if isinstance(value, str) and key not in ("choices", "contexts", "labels") else ():
            yield f"scoring.{key}", template
        for template in value if isinstance(value, tuple) else ():
            yield f"scoring.{key}", template


def _lists(task: Task) -> Iterator[tuple[str, str]]:
    for key in ("choices", "contexts", "labels", "references"):
        value = getattr(task.scoring, key)
        if isinstance(value, str) and value:
            yield f"scoring.{key}", value
    for name in task.metadata:
        yield "metadata", name
