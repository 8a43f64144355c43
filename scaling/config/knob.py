"""How a knob is declared."""

import dataclasses
from typing import Any


def knob(default: Any, unit: str, help: str) -> Any:
    """Declares one knob: its default, its unit ("" for a pure number or name) and what it does."""
    return dataclasses.field(default=default, metadata={"unit": unit, "help": help})
