"""The page: one HTML file that needs nothing else, neither scripts nor a network."""

from collections.abc import Sequence

from scaling.report.sections import Section
from scaling.report.tables import escape

_CSS = """
:root { color-scheme: light; --ink: #222; --soft: #666; --line: #e2e2e2; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.5rem 4rem; max-width: 66rem; background: #fff; color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; margin: .5rem 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .7rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .92rem; margin: .6rem 0 0; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
p { max-width: 48rem; } .made, figcaption { font-size: .86rem; } .made, small, figcaption { color: var(--soft); }
small { font-size: .9em; } sup { line-height: 0; font-size: .75em; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .8rem; margin: 1rem 0; }
.tiles div { border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem; }
dt { color: var(--soft); font-size: .86rem; } dd { margin: 0; font-size: 1.15rem; font-weight: 600; }
.law { font-size: 1.08rem; margin: .5rem 0; padding-left: .8rem; border-left: 3px solid var(--accent); }
.refused { color: var(--soft); }
figure { margin: 1rem 0 1.6rem; } figure img { width: 100%; height: auto; display: block; }
figcaption { max-width: 50rem; margin-top: .4rem; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; } .n { text-align: right; white-space: nowrap; }
th.n { white-space: normal; } td { overflow-wrap: anywhere; } td:first-child { white-space: nowrap; }
ul.note, ul.warnings { font-size: .92rem; padding-left: 1.2rem; } ul.warnings { color: #8a4b00; }
.finished { color: #00694c; } .unfinished { color: #8a4b00; } .diverged, .damaged { color: #b03a00; font-weight: 600; }
summary { cursor: pointer; color: var(--accent); font-size: .92rem; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; } nav { display: none; } .wide { overflow: visible; }
  figure, tr, .tiles { break-inside: avoid; } h2 { break-after: avoid; } table { font-size: 7.5pt; }
}
"""


def page(title: str, made: str, sections: Sequence[Section]) -> str:
    """The whole file.

    Args:
        title: heading, plain text.
        made: from what and by what the page was made, plain text.
        sections: in reading order.
    """
    links = "".join(f'<a href="#{part.key}">{escape(part.title)}</a>' for part in sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_CSS}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p class="made">{escape(made)}</p>
<nav>{links}</nav>
{"".join(_section(part) for part in sections)}
</body>
</html>
"""


def _section(part: Section) -> str:
    figures = "".join(
        f'<figure><img src="{drawing.data_uri()}" alt="{escape(drawing.caption)}">'
        f"<figcaption>{escape(drawing.caption)}</figcaption></figure>\n"
        for drawing in part.drawings
    )
    return f'<section id="{part.key}">\n<h2>{escape(part.title)}</h2>\n{part.html}\n{figures}</section>\n'
