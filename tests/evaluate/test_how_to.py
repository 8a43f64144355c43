"""The pages docs/how-to/task.md and metric.md show the code as it is."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EVALUATE = ROOT / "scaling" / "evaluate"


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / "how-to" / page).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_kind_of_the_page_is_the_one_that_ships():
    assert blocks("task.md", "python") == [(EVALUATE / "tasks/kinds/likelihood.py").read_text()]


@pytest.mark.parametrize(
    ("page", "file"), [("task.md", "tasks/kinds/__init__.py"), ("metric.md", "scoring/metrics.py")]
)
def test_the_lines_of_the_page_are_in_the_code(page: str, file: str):
    (diff,) = blocks(page, "diff")
    added = [line[1:] for line in diff.splitlines() if line.startswith("+")]
    assert added and set(added) <= set((EVALUATE / file).read_text().splitlines())
