"""The kinds of experiment files, which differ in their knobs: ``TRAINING``, and that of ``scaling.corpus.config``."""

import ast
import dataclasses
import difflib
import functools
from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar

from ml_collections import ConfigDict

from scaling.config import schema
from scaling.config.refusal import shown

C = TypeVar("C")

TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", tuple: "a list"}


@dataclasses.dataclass(frozen=True)
class Kind(Generic[C]):
    """Which knobs an experiment file has.

    Attributes:
        root: the frozen dataclasses of all knobs, at their defaults.
        function: of an experiment file, that returns the edited ``default()``.
        moved: old dotted names of knobs, without ``config.``, and the present ones.
    """

    root: C
    function: str
    moved: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)

    @functools.cached_property
    def defaults(self) -> dict[str, Any]:
        """The default of each knob by its dotted name, ``config.a.b``."""
        return {name: value for name, value, _, _ in schema.knobs(self.root)}

    @functools.cached_property
    def sections(self) -> dict[tuple[str, ...], str]:
        """The name of a section by the sorted names in it; "" is the whole config."""
        whole = self.default()
        found = {tuple(sorted(section)): name for name, section in whole.items() if hasattr(section, "keys")}
        return found | {tuple(sorted(whole)): ""}

    def default(self) -> ConfigDict:
        """All knobs at their defaults, as a locked ConfigDict for an experiment file to edit."""
        return ConfigDict(schema.to_dict(self.root)).lock()

    def check(self, name: str) -> None:
        """Raises a ValueError that names the nearest knob unless ``name`` (``config.a.b``) is one."""
        if name in self.defaults:
            return
        if any(knob.startswith(f"{name}.") for knob in self.defaults):
            inside = next(knob for knob in self.defaults if knob.startswith(f"{name}."))
            raise ValueError(f"{name} is a section of knobs; set one inside it, such as {inside}")
        moved = self.moved.get(name.removeprefix("config."))
        raise ValueError(f"{name} is not a knob; did you mean {f'config.{moved}' if moved else self.nearest(name)}?")

    def nearest(self, name: str, others: Iterable[str] = ()) -> str:
        """The knob (or one of ``others``) whose dotted name and last part look most like ``name``."""
        word = name.rpartition(".")[2]

        def likeness(knob: str) -> float:
            last = knob.rpartition(".")[2]
            return (
                difflib.SequenceMatcher(None, name, knob).ratio()
                + difflib.SequenceMatcher(None, word, last).ratio()
                + 0.5 * (word in last.split("_"))  # 'lr' means 'peak_lr'
            )

        return max([*self.defaults, *others], key=likeness)

    def expected(self, name: str) -> str:
        """What a knob takes, in words."""
        return TYPES[type(self.defaults[name])]

    def normal(self, name: str, value: str) -> str:
        """The text of a value that the parser takes: whole numbers for ``1e9`` and ``2_000.0``, a list for a text."""
        if type(self.defaults[name]) is int:
            try:
                number = float(value)
            except ValueError:
                return value
            return str(int(number)) if number.is_integer() and not value.lstrip("+-").isdecimal() else value
        if isinstance(self.defaults[name], tuple):
            try:
                ast.literal_eval(value)
            except (ValueError, SyntaxError):
                return repr(value)
        return value

    def wrong_type(self, name: str, value: Any) -> ValueError:
        """The refusal of a value."""
        hint = f"; write {int(value):_}" if isinstance(value, float) and value.is_integer() else ""
        return ValueError(f"{name} must be {self.expected(name)}, got {shown(value)}{hint}")


TRAINING: Kind[schema.Config] = Kind(schema.Config(), "get_config", schema.MOVED)
