"""YAML that every reader takes for the same: texts in double quotes, those of several lines as blocks, no anchors.

Readers differ in what an unquoted text is. ``1234e56`` is a text by YAML 1.1 (PyYAML), and a number by YAML 1.2 and for
kubectl; ``no``, ``0o17``, ``1_000``, ``1:30`` and dates differ in other ways.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

# Without quotes: words that no version of YAML takes for something else.
_PLAIN = re.compile(r"(?!(y|n|yes|no|on|off|true|false|null|nan|inf)$)[a-z][a-z0-9_./-]*", re.IGNORECASE)
# As a block: lines of printable ASCII, of which the first has a text and none has spaces at its end.
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
    """Documents as one stream."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, explicit_start=True, width=float("inf"))
