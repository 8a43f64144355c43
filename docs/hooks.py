"""What `make site` adds to the pages of docs/: an API reference, notebooks as pages, and a check of the result."""

import json
import logging
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("scaling", "launch")
LOG = logging.getLogger("mkdocs.hooks.scaling")  # below mkdocs, whose strict mode counts warnings

# What a browser fetches by itself, in a page or a style sheet.
_FETCHED = re.compile(
    r"<(?:script|img|link|iframe|source|video|audio|object|embed)\b[^>]*?\b(?:src|href|srcset|data)=[\"']?(?:https?:)?//[^\s\"'>]*"
    r"|url\(\s*[\"']?(?:https?:)?//[^\s\"')]*"
    r"|@import\s+[\"'](?:https?:)?//[^\s\"']*"
)


def on_config(config: Any) -> Any:
    """Adds the pages of the API reference to the navigation."""
    config.nav.append({"API": [{name: path} for name, path, _ in api_pages()]})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that are made and not written: one for each package, one for each notebook."""
    from mkdocs.structure.files import File

    pages = [(path, text) for _, path, text in api_pages()]
    for notebook in sorted((ROOT / "docs").glob("notebooks/*.ipynb")):
        pages.append((f"notebooks/{notebook.stem}.md", notebook_page(notebook)))
    for path, text in pages:
        files.append(File.generated(config, path, content=text))
    return files


def on_post_build(config: Any) -> None:
    """Warns, which fails a strict build, of what a browser would ask other hosts for."""
    for path in sorted(Path(config.site_dir).rglob("*")):
        if path.suffix in (".html", ".css"):
            for request in requests_of(path.read_text(encoding="utf-8")):
                LOG.warning("%s asks another host: %s", path.relative_to(config.site_dir), request)


def api_pages() -> list[tuple[str, str, str]]:
    """(name, path, Markdown) of a page for each package: what mkdocstrings makes of the docstrings of its modules."""
    pages = []
    for package in PACKAGES:
        folders = sorted(path.parent for path in (ROOT / package).rglob("__init__.py"))
        for folder in folders:
            name = ".".join(folder.relative_to(ROOT).parts)
            modules = [path.stem for path in sorted(folder.glob("*.py")) if not path.stem.startswith("__")]
            text = "".join(f"\n::: {name}.{module}\n" for module in modules)
            if modules:
                pages.append((name, f"api/{name}.md", f"# `{name}`\n{text}"))
    return pages


def notebook_page(path: Path) -> str:
    """A notebook with its stored outputs as Markdown: text, code, what was printed, PNG pictures."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(f"![Output](data:image/png;base64,{''.join(data['image/png']).replace(chr(10), '')})")
            else:
                parts.append(f"```text\n{''.join(output.get('text', data.get('text/plain', ''))).rstrip()}\n```")
    return "\n\n".join([*parts, f"[The notebook itself]({path.name})"]) + "\n"


def requests_of(text: str) -> list[str]:
    """The requests to other hosts in a page or a style sheet, each as it is written there."""
    return _FETCHED.findall(text)
