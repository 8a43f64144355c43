"""The reference of all knobs as Markdown: ``scaling config --describe``, and ``docs/config.md``."""

from itertools import groupby

from scaling.config.schema import knobs


def to_markdown() -> str:
    """A Markdown table for each section, with the columns knob, default, unit and meaning."""
    lines = [
        "# Every knob",
        "",
        "`make docs` makes this page from `scaling/config/schema.py`; do not edit it. Set a knob in an experiment file",
        "(`config.model.num_layers = 2`) or on the command line (`--config.model.num_layers=2`).",
    ]
    sections = groupby(knobs(), key=lambda knob: knob[0].rpartition(".")[0])
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
