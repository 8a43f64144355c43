"""Reading a task file (TOML). Every mistake is a ValueError of one sentence that names the file and the key."""

import dataclasses
import itertools
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from etils import epath

from scaling.evaluate.tasks.checks import check, one_of, with_own_keys
from scaling.evaluate.tasks.kind import Kind
from scaling.evaluate.tasks.kinds import KINDS
from scaling.evaluate.tasks.task import Field, Generator, Prompt, Source, Split, Task, nearest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def load(path: str | Path) -> tuple[Task, ...]:
    """Reads a task file.

    Returns:
        Its variants in their order, or the one task, named as the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not TOML, or a key that is unknown, missing or of the wrong type.
    """
    path = Path(path)
    table = parse(path)
    variants = _variants(table.pop("variants", {}), str(path))
    if table.get("sampled") is True and len(variants) < 2:
        raise ValueError(f"{path}: sampled = true needs at least two [variants.NAME]; they are the sample")
    if not variants:
        return (_task(path.stem, path, table),)
    return tuple(_task(name, path, _substitute(table, constants)) for name, constants in variants.items())


def parse(path: Path | epath.Path) -> dict[str, Any]:
    """The TOML of a task file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no text, or not TOML.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such task file") from None
    except (IsADirectoryError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a task file: {error}") from None
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError also for an integer with too many digits
        raise ValueError(f"{path} is not TOML: {error}") from None


def _variants(table: Any, path: str) -> dict[str, dict[str, str]]:
    if not isinstance(table, dict) or not all(isinstance(v, dict) for v in table.values()):
        raise ValueError(f"{path}: variants must be tables, [variants.NAME], of constants")
    for name, constants in table.items():
        if not re.fullmatch(r"[\w.\-]+", name):  # files of samples have this name
            raise ValueError(f"{path}: variants.{name!r} must be letters, digits, '_', '-' and '.'")
        for key, value in constants.items():
            if not isinstance(value, str):
                raise ValueError(f"{path}: variants.{name}.{key} must be text, got {value!r}")
    return table


def _substitute(value: Any, constants: Mapping[str, str]) -> Any:
    """Puts a variant's constants for their names in braces, in every text of the file."""
    if isinstance(value, str):
        return re.sub(r"\{(\w+)\}", lambda found: constants.get(found[1], found[0]), value)
    if isinstance(value, list):
        return [_substitute(item, constants) for item in value]
    if isinstance(value, dict):
        return {key: _substitute(item, constants) for key, item in value.items()}
    return value


# Fields of Task that are keys of the file.
_SCALARS = (
    "about",
    "few_shot",
    "metrics",
    "metadata",
    "sampled",
    "measures",
)
_TABLES = ("prompt", "zero_shot", "chat", "scoring", "source", "generator")
_TYPES = {field.name: field.type for field in dataclasses.fields(Task)}


def _task(name: str, path: Path, table: Mapping[str, Any]) -> Task:
    file = str(path)
    scalars = {}
    for key, value in table.items():
        if key not in (*_SCALARS, *_TABLES):
            near = nearest(key, (*_SCALARS, *_TABLES))
            raise ValueError(f"{file}: {key} is not a key of a task; did you mean {near}?")
        if key in _SCALARS:
            scalars[key] = _convert(value, _TYPES[key], f"{file}: {key}")
    for key in ("prompt", "scoring", "metrics"):
        if key not in table:
            raise ValueError(f"{file}: {key} is missing")
    if ("source" in table) == ("generator" in table):
        raise ValueError(f"{file}: items come from either [[source]] tables or one [generator]")
    prompt = read_table(Prompt, table["prompt"], file, "prompt")
    zero_shot = read_table(Prompt, table.get("zero_shot", {}), file, "zero_shot", prompt)
    sources = table.get("source", [])
    if not isinstance(sources, list):
        raise ValueError(f"{file}: source must be written [[source]], since there can be several")
    if not sources and "generator" not in table:
        raise ValueError(f"{file}: source is empty; items come from at least one [[source]]")
    task = Task(
        name=name,
        group=path.stem,
        path=file,
        prompt=prompt,
        zero_shot=zero_shot,
        chat=read_table(Prompt, table.get("chat", {}), file, "chat", zero_shot),
        scoring=_scoring(table["scoring"], file),
        sources=tuple(read_source(source, file) for source in sources),
        generator=read_table(Generator, table["generator"], file, "generator") if "generator" in table else None,
        **scalars,
    )
    task = with_own_keys(task)
    check(task)
    return task


def _scoring(table: Any, file: str) -> Kind:
    """The kind that the table names, with its other keys."""
    if not isinstance(table, dict):
        raise ValueError(f"{file}: scoring must be a table, got {table!r}")
    keys = {name: [field.name for field in dataclasses.fields(cls)] for name, cls in KINDS.items()}
    known = list(dict.fromkeys(["kind", *itertools.chain(*keys.values())]))
    for key in table:
        if key not in known:
            raise ValueError(
                f"{file}: scoring.{key} is not a key of a task; did you mean scoring.{nearest(key, known)}?"
            )
    kind = _convert(table.get("kind", ""), str, f"{file}: scoring.kind")
    one_of(file, "scoring.kind", kind, KINDS)
    fields = dataclasses.fields(KINDS[kind])
    for key in (field.name for field in fields if field.default is dataclasses.MISSING):
        if not table.get(key):
            raise ValueError(f"{file}: scoring.{key} is missing; kind = {kind!r} needs it")
    for key in sorted(table.keys() - {"kind", *keys[kind]}):
        more = f"; it takes {', '.join(keys[kind])}" if keys[kind] else ""
        raise ValueError(f"{file}: scoring.{key} has no meaning with kind = {kind!r}{more}")
    return read_table(KINDS[kind], {key: value for key, value in table.items() if key != "kind"}, file, "scoring")


def read_source(table: Any, file: str) -> Source:
    """A table ``[[source]]`` of a file; mistakes as of ``load``."""
    if not isinstance(table, dict):
        raise ValueError(f"{file}: source must be a table, written [[source]]")
    table = dict(table)
    fields = table.pop("fields", {})
    if not isinstance(fields, dict):
        raise ValueError(f"{file}: source.fields must be a table of fields")
    if "test" not in table:
        raise ValueError(f"{file}: source.test is missing")
    splits = {key: _split(table.pop(key), file, f"source.{key}") for key in ("test", "train") if key in table}
    return dataclasses.replace(
        read_table(Source, table, file, "source"),
        fields={name: _field(spec, file, f"source.fields.{name}") for name, spec in fields.items()},
        test=splits["test"],
        train=splits.get("train"),
    )


def _split(value: Any, file: str, where: str) -> Split:
    split = read_table(Split, {"file": value} if isinstance(value, str) else value, file, where)
    if not split.file:
        raise ValueError(f"{file}: {where}.file is missing")
    return split


def _field(spec: Any, file: str, where: str) -> Field:
    if isinstance(spec, str | list):
        spec = {"from": spec}
    if isinstance(spec, dict):
        if "path" in spec:
            raise ValueError(f"{file}: {where}.path is not a key of a task; did you mean {where}.from?")
        spec = {("path" if key == "from" else key): value for key, value in spec.items()}
        if ("path" in spec) == ("constant" in spec):
            raise ValueError(f"{file}: {where} needs either 'from', a path, or 'constant', a value")
    return read_table(Field, spec, file, where)


def read_table(cls: type[T], table: Any, file: str, where: str, base: T | None = None) -> T:
    """Makes a dataclass of a TOML table. Unknown keys and wrong types are refused; missing keys come from ``base``."""
    if not isinstance(table, dict):
        raise ValueError(f"{file}: {where} must be a table, got {table!r}")
    known = {field.name: field.type for field in dataclasses.fields(cls)}
    values = {}
    for key, value in table.items():
        if key not in known:
            near = nearest(key, known)
            near = "from" if cls is Field and near == "path" else near
            raise ValueError(f"{file}: {where}.{key} is not a key of a task; did you mean {where}.{near}?")
        values[key] = _convert(value, known[key], f"{file}: {where}.{key}")
    return cls(**values) if base is None else dataclasses.replace(base, **values)


def _convert(value: Any, kind: Any, where: str) -> Any:
    """Checks a TOML value against an annotation of a dataclass."""
    kind = getattr(kind, "__origin__", kind) if typing.get_origin(kind) is typing.Annotated else kind
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    options = tuple(option for option in options if option is not types.NoneType)  # TOML has no null
    for option in options:
        origin = typing.get_origin(option) or option
        if origin is tuple and isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        if origin is Mapping and isinstance(value, dict) and all(isinstance(item, str) for item in value.values()):
            return value
        if origin is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if origin in (str, int, bool) and type(value) is origin:
            return value
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    names |= {tuple: "a list of texts", Mapping: "a table of texts"}
    wanted = " or ".join(names[typing.get_origin(option) or option] for option in options)
    raise ValueError(f"{where} must be {wanted}, got {value!r}")
