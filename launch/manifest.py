"""Writes YAML that all readers understand alike: texts in double quotes or as blocks of lines, and no anchors.

Readers differ in which unquoted words are texts. ``1234e56`` is a text in YAML 1.1 (PyYAML), and a number in YAML 1.2
and for kubectl; ``no``, ``0o17``, ``1_000``, ``1:30`` and dates differ in other ways.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

# Words that are texts in every version of YAML, so they need no quotes.
_PLAIN = re.compile(r"(?!(y|n|yes|no|on|off|true|false|null|nan|inf)$)[a-z][a-z0-9_./-]*", re.IGNORECASE)
# Texts that may be written as a block: lines of printable ASCII without trailing spaces, the first of them not empty.
_BLOCK = re.compile(r"[!-~]([ -~\n]*[!-~])?\n*")


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style: str | None = '"'
    if _PLAIN.fullmatch(text):
        style = None
    elif "\n" in text and _BLOCK.fullmatch(text) and " \n" not in text:
        style = "|"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def to_yaml(documents: Iterable[Mapping[str, Any]]) -> str:
    """Documents as one stream of YAML."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, explicit_start=True, width=float("inf"))
