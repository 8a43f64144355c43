"""From a record of a file to the fields that a task's templates use."""

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

from scaling.evaluate.tasks.task import Field, Source
from scaling.evaluate.tasks.templates import Fields, placeholders, render

_DETERMINERS = "the|a|an|my|your|his|her|its|our|their|this|that|these|those|each|every|some"


def fields_of(record: Mapping[str, Any], source: Source, where: str) -> Fields | None:
    """The fields of one record; None if ``source.keep`` leaves it out. Texts are stripped.

    Raises:
        ValueError: a path that the record does not have, or a value that cannot be used; names ``where``.
    """
    fields = {name: _value(record, spec, f"{where}: {name}") for name, spec in source.fields.items()}
    for name, pattern in source.keep.items():
        value = fields[name]
        if not isinstance(value, str):
            raise ValueError(f"{where}: {name} is a list; source.keep compares texts")
        if not re.search(pattern, value):
            return None
    return fields


def _value(record: Mapping[str, Any], spec: Field, where: str) -> str | list[str]:
    if spec.constant is not None:
        return list(spec.constant) if isinstance(spec.constant, tuple) else spec.constant
    found: Any
    if isinstance(spec.path, tuple):
        found = []
        for path in spec.path:  # a path with * gives several texts
            value = _take(record, path, spec, where)
            found += value if isinstance(value, list) and "*" in path else [value]
    else:
        found = _take(record, spec.path, spec, where)
    if spec.as_json:
        found = [_json(value) for value in found] if isinstance(found, list) else _json(found)
    if spec.match_all and not isinstance(found, list):
        found = [
            match[1] if match.re.groups else match[0] for match in re.finditer(spec.match_all, _text(found, where))
        ]
    if isinstance(found, list):
        texts = [_one(_text(item, where), spec, where) for item in found]
        return texts if texts or not spec.empty else [spec.empty]
    return _one(_text(found, where), spec, where)


def _take(record: Mapping[str, Any], path: str, spec: Field, where: str) -> Any:
    if path in record:  # first as a whole, since a key may have dots
        return record[path]
    if names := placeholders(path):
        parts = {name: _text(_follow(record, name.split("."), name, spec, where), where) for name in names}
        return render(path, parts, where)
    return _follow(record, path.split("."), path, spec, where)


def _follow(value: Any, parts: list[str], path: str, spec: Field, where: str) -> Any:
    for place, part in enumerate(parts):
        if part == "*":
            if not isinstance(value, list):
                value = [value]  # an element of XML that occurs once is not read as a list
            found = [_follow(item, parts[place + 1 :], path, spec, where) for item in value]
            nested = "*" in parts[place + 1 :]
            return [inner for item in found for inner in item] if nested else found
        if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        elif value == [] and part.isdecimal() and spec.empty:
            return ""
        elif isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, Mapping) and part.endswith("?"):
            value = value.get(part[:-1], [])
        elif isinstance(value, Mapping) and (same := [key for key in value if _nfc(key) == _nfc(part)]):
            value = value[same[0]]
        else:
            keys = f"there are {', '.join(map(repr, value))}" if isinstance(value, Mapping) else "there are no keys"
            raise ValueError(f"{where}: the record has no {path!r}; {keys}")
    return value


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _nfc(text: Any) -> str:
    """With composed letters, so that keys that look the same are equal."""
    return unicodedata.normalize("NFC", str(text))


def _text(value: Any, where: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        text = str(value).strip()
        if not text.isascii() and (half := re.search("[\ud800-\udfff]", text)):
            raise ValueError(f"{where} has half a character, \\u{ord(half[0]):x}, which no file of text can hold")
        return text
    raise ValueError(f"{where} must be text, a number or true/false, not {str(value)[:40]!r}")


def _one(text: str, spec: Field, where: str) -> str:
    if spec.remove:
        text = re.sub(spec.remove, "", text).strip()
    if spec.match:
        found = re.search(spec.match, text, re.DOTALL)
        if found is None:
            raise ValueError(f"{where}: {text[:60]!r} does not match {spec.match!r}")
        text = (found[1] if found.re.groups else found[0]).strip()
    if spec.map:
        if text not in spec.map:
            raise ValueError(f"{where}: {text[:40]!r} is none of {', '.join(map(repr, spec.map))}")
        text = spec.map[text]
    for edit in spec.edits:
        text = EDITS[edit](text)
    return text or spec.empty


def _lower_first(text: str) -> str:
    return text if re.match(r"I\b", text) else text[:1].lower() + text[1:]


def _lower_determiner(text: str) -> str:
    """'The city councilmen' in the middle of a sentence; names keep their capital."""
    return re.sub(rf"(?i)^({_DETERMINERS})\b", lambda found: found[0].lower(), text)


EDITS: dict[str, Callable[[str], str]] = {
    "upper_first": lambda text: text[:1].upper() + text[1:],
    "lower_first": _lower_first,
    "lower_determiner": _lower_determiner,
    "without_period": lambda text: text.removesuffix("."),
    "with_period": lambda text: text if not text or text.endswith(".") else f"{text}.",
    "question_mark": lambda text: text if text.endswith("?") else f"{text}?",
}
