"""Templates: texts with the names of fields in braces."""

import re
from collections.abc import Mapping

Fields = Mapping[str, str | list[str]]


def placeholders(template: str) -> list[str]:
    """The names in braces; doubled braces stand for themselves."""
    return re.findall(r"\{([^{}]*)\}", template.replace("{{", "").replace("}}", ""))


def render(template: str, fields: Fields, where: str) -> str:
    """Puts fields for their names in braces; ``{{`` and ``}}`` are braces. Braces in the fields stay as they are.

    Raises:
        ValueError: the field is a list; names ``where``.
    """

    def put(found: re.Match[str]) -> str:
        if found[1] is None:
            return found[0][0]
        value = fields[found[1]]
        if not isinstance(value, str):
            raise ValueError(f"{where}: the field {found[1]!r} is a list, and {template!r} needs a text")
        return value

    return re.sub(r"\{\{|\}\}|\{([^{}]*)\}", put, template)
