"""What a task file must satisfy beyond keys and types: names that exist, templates that have their fields."""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from scaling.evaluate.scoring.metrics import METRICS
from scaling.evaluate.tasks.fields import EDITS
from scaling.evaluate.tasks.kind import Kind
from scaling.evaluate.tasks.kinds import KINDS
from scaling.evaluate.tasks.readers import FORMATS
from scaling.evaluate.tasks.synthetic import GENERATORS
from scaling.evaluate.tasks.task import MEASURES, Field, Prompt, Source, Task, nearest
from scaling.evaluate.tasks.templates import placeholders

_ALIKE = 0.8  # difflib's ratio of two names from which on one counts as a misspelling of the other


def check(task: Task) -> None:
    """Refuses a task that cannot work.

    Raises:
        ValueError: says the file, the key and what would be right.
    """
    _scoring(task)
    one_of(task.path, "measures", task.measures, MEASURES)
    known = []
    if task.generator is not None:
        one_of(task.path, "generator.name", task.generator.name, GENERATORS)
        one_of(task.path, "generator.kind", task.generator.kind, GENERATORS[task.generator.name].kinds)
        if task.generator.count < 1 or task.generator.demonstrations < 0:
            raise ValueError(f"{task.path}: generator.count must be at least 1, generator.demonstrations at least 0")
        known.append(set(GENERATORS[task.generator.name].fields))
    for source in task.sources:
        _source(task, source)
        known.append(set(source.fields))
    fields = set.intersection(*known)
    for where, name in _used(task):
        if name not in fields:
            raise ValueError(f"{task.path}: {where}, {_unknown(name, fields, known)}")
    for where, prompt in _prompts(task):
        if prompt.context != prompt.context.rstrip():
            raise ValueError(
                f"{task.path}: {where}.context ends in white space; the space before a completion is put there for you"
            )
        if prompt.turns and where != "chat":
            raise ValueError(f"{task.path}: {where}.turns has no meaning; turns belong to [chat]")
    _pattern(task, "chat.turns", task.chat.turns)


def with_own_keys(task: Task) -> Task:
    """Adds fields for the names that the task uses and no table of fields has: they are keys of the record.

    A name that is spelt much like one in a table is taken for a mistake instead, which ``check`` then refuses. The keys
    of records are known beforehand for some formats only.
    """
    tables = {name for source in task.sources for name in source.fields}
    sources = []
    for source in task.sources:
        names = [*(name for _, name in _used(task)), *_kept(source)]
        keys = (FORMATS[source.format].keys if source.format in FORMATS else ()) or source.columns
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


def one_of(file: str, key: str, value: str, known: Iterable[str]) -> None:
    """Refuses a value of a key that is none of the known ones.

    Raises:
        ValueError: says the file, the key and the nearest that would be right.
    """
    names = list(known)
    if not value:
        raise ValueError(f"{file}: {key} is missing; it is one of {', '.join(names)}")
    if value not in names:
        raise ValueError(f"{file}: {key} = {value!r} is unknown; did you mean {nearest(value, names)!r}?")


def _scoring(task: Task) -> None:
    kind = next(name for name, cls in KINDS.items() if type(task.scoring) is cls)
    if normalisation := getattr(task.scoring, "normalisation", ""):
        one_of(task.path, "scoring.normalisation", normalisation, task.scoring.normalisations)
    if wrong := task.scoring.check():
        raise ValueError(f"{task.path}: {wrong}")
    if not task.metrics:
        raise ValueError(f"{task.path}: metrics is empty")
    fitting = [name for name, metric in METRICS.items() if metric.fact in task.scoring.gives]
    for name in task.metrics:
        one_of(task.path, f"metrics of kind {kind!r}", name, fitting)
    if task.few_shot < 0:
        raise ValueError(f"{task.path}: few_shot = {task.few_shot} must not be negative")
    _patterns(task, "scoring", task.scoring)


def _source(task: Task, source: Source) -> None:
    one_of(task.path, "source.format", source.format, FORMATS)
    form = FORMATS[source.format]
    if source.records and not form.records:
        having = _listed(name for name, other in FORMATS.items() if other.records)
        raise ValueError(f"{task.path}: source.records belongs to {having}, not to {source.format}")
    if source.columns and form.columns == "no":
        having = _listed(name for name, other in FORMATS.items() if other.columns != "no")
        raise ValueError(f"{task.path}: source.columns belongs to {having}, not to {source.format}")
    if form.columns == "required" and not source.columns:
        raise ValueError(f"{task.path}: source.columns is missing; {source.format} need the names of their lines")
    for name, field in source.fields.items():
        _field(task, f"source.fields.{name}", field)
    for name, pattern in _kept(source).items():
        if name not in source.fields:
            near = f"did you mean {nearest(name, source.fields)!r}?" if source.fields else "it has none"
            raise ValueError(f"{task.path}: source.keep.{name} is not one of its fields; {near}")
        _pattern(task, f"source.keep.{name}", pattern)


def _kept(source: Source) -> dict[str, str]:
    """Field -> regular expression that its records must match, also where these are of a split alone."""
    return {**source.keep, **source.test.keep, **(source.train.keep if source.train else {})}


def _field(task: Task, where: str, field: Field) -> None:
    for edit in field.edits:
        one_of(task.path, f"{where}.edits", edit, EDITS)
    _patterns(task, where, field)


def _listed(names: Iterable[str]) -> str:
    *others, final = names
    return f"{', '.join(others)} and {final}"


def _patterns(task: Task, where: str, table: Field | Kind) -> None:
    """Refuses malformed regular expressions in the fields that are annotated as such."""
    for name, _ in _keys(table, "pattern"):
        _pattern(task, f"{where}.{name}", getattr(table, name))


def _keys(table: Field | Kind, *meanings: str) -> Iterator[tuple[str, Any]]:
    """The keys of a table that are annotated with one of the meanings (``kind.Template`` and the like), with values."""
    for field in dataclasses.fields(table):
        if getattr(field.type, "__metadata__", ("",))[0] in meanings:
            yield field.name, getattr(table, field.name)


def _pattern(task: Task, where: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{task.path}: {where} is not a regular expression: {error}") from None


def _used(task: Task) -> Iterator[tuple[str, str]]:
    """What in the task uses a field, and the name of the field."""
    for where, template in _templates(task):
        for name in placeholders(template):
            yield f"{where} uses {{{name}}}", name
    for where, name in _lists(task):
        yield f"{where} names the field {name!r}", name


def _prompts(task: Task) -> tuple[tuple[str, Prompt], ...]:
    return ("prompt", task.prompt), ("zero_shot", task.zero_shot), ("chat", task.chat)


def _templates(task: Task) -> Iterator[tuple[str, str]]:
    for where, prompt in _prompts(task):
        yield f"{where}.context", prompt.context
    for key, template in _keys(task.scoring, "template"):
        yield f"scoring.{key}", template
    for key, value in _keys(task.scoring, "texts"):
        for template in value if isinstance(value, tuple) else ():
            yield f"scoring.{key}", template


def _lists(task: Task) -> Iterator[tuple[str, str]]:
    for key, value in _keys(task.scoring, "texts", "field"):
        if isinstance(value, str) and value:
            yield f"scoring.{key}", value
    for name in task.metadata:
        yield "metadata", name
