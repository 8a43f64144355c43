"""Notebooks run as they are stored; what docs/hooks.py adds to the site; every page is in the menu."""

import contextlib
import importlib.util
import io
import json
import re
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
NOTEBOOKS = sorted(DOCS.glob("notebooks/*.ipynb"))
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?")


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _numbers(text):
    return [float(number.replace(",", "")) for number in _NUMBER.findall(text)]


@pytest.mark.slow  # laws are fitted
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_prints_what_it_stores(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    matplotlib.use("agg")
    names = {"__name__": "__main__"}
    pictures = 0
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] != "code":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("".join(cell["source"]), path.name, "exec"), names)
        stored = "".join("".join(output.get("text", "")) for output in cell["outputs"])
        # Digits differ a little between machines; other words, or another number of numbers, are another program's.
        assert _NUMBER.sub("", printed.getvalue()).split() == _NUMBER.sub("", stored).split()
        assert _numbers(printed.getvalue()) == pytest.approx(_numbers(stored), rel=0.05, abs=0.05)
        pictures += sum("image/png" in output.get("data", {}) for output in cell["outputs"])
    assert pictures


def test_notebooks_are_small():
    assert NOTEBOOKS
    assert all(path.stat().st_size < 300_000 for path in NOTEBOOKS)


def test_notebook_as_a_page(hooks, tmp_path):
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        {
            "cell_type": "code",
            "source": ["print(1)\n", "2"],
            "outputs": [
                {"output_type": "stream", "text": ["1\n"]},
                {"output_type": "execute_result", "data": {"text/plain": ["2"]}},
                {"output_type": "display_data", "data": {"text/plain": ["<Figure>"], "image/png": "QUJD\n"}},
            ],
        },
    ]
    (tmp_path / "n.ipynb").write_text(json.dumps({"cells": cells}))
    page = hooks.notebook_page(tmp_path / "n.ipynb")
    parts = ["# Title\ntext", "```python\nprint(1)\n2\n```", "```text\n1\n```", "```text\n2\n```", "base64,QUJD)"]
    places = [page.index(part) for part in parts]
    assert places == sorted(places)
    assert "<Figure>" not in page and "(n.ipynb)" in page


def test_api_has_every_module(hooks):
    named = {
        line.removeprefix("::: ") for _, _, text in hooks.api_pages() for line in text.splitlines() if ":::" in line
    }
    files = [path for package in ("scaling", "launch") for path in (ROOT / package).rglob("*.py")]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files}
    assert named == {name for name in modules if "__" not in name}


@pytest.mark.parametrize(
    ("text", "requests"),
    [
        ('<script src="https://a.org/x.js"></script>', 1),
        ('<link rel="stylesheet" href="//a.org/x.css">', 1),
        ("<img alt='' src='http://a.org/x.png'>", 1),
        ("a { background: url(https://a.org/x.png) } @import 'https://a.org/x.css';", 2),
        ('<a href="https://a.org">a link is followed by people</a>', 0),
        ('<img src="data:image/png;base64,QUJD"><script src="../x.js"></script>', 0),
    ],
)
def test_requests_to_other_hosts_are_found(hooks, text, requests):
    assert len(hooks.requests_of(text)) == requests


def test_every_page_is_in_the_menu():
    """MkDocs refuses pages that are not; here that is seen without it."""
    menu = (ROOT / "mkdocs.yml").read_text()
    notebooks = {f"notebooks/{path.stem}.md" for path in NOTEBOOKS}
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md") if "runs" not in path.parts}
    assert [
        page for page in sorted(pages | notebooks) if not re.search(rf"(: |- ){re.escape(page)}$", menu, re.M)
    ] == []
