"""The reference of all knobs as Markdown: ``scaling config --describe``, and ``docs/config.md``."""

from itertools import groupby
from typing import Any

from scaling.config.schema import Config, knobs


def to_markdown(root: Any = None, source: str = "scaling/config/schema.py") -> str:
    """A Markdown table for each section, with the columns knob, default, unit and meaning.

    Args:
        root: the knobs at their defaults; None = those of a training.
        source: file that declares them.
    """
    example = "config.model.num_layers" if root is None else "config.workers"
    lines = [
        "# Every knob",
        "",
        f"`make docs` makes this page from `{source}`; do not edit it. Set a knob in an experiment file",
        f"(`{example} = 2`) or on the command line (`--{example}=2`).",
    ]
    sections = groupby(knobs(Config() if root is None else root), key=lambda knob: knob[0].rpartition(".")[0])
    for section, members in sections:
        lines += ["", f"## {section}", "", "| knob | default | unit | meaning |", "|---|---|---|---|"]
        for name, value, unit, help in members:
            cells = (name.rpartition(".")[2], f"`{_default(value)}`", unit, help.replace("|", "\\|"))
            lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    return "\n".join(lines) + "\n"


def _default(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) < 10_000:
        return repr(value)
    return f"{value:_}"
