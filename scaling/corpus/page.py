"""The report of a build: one HTML page with what went into each stage, what came out, and why the rest did not."""

from collections.abc import Mapping, Sequence

from scaling.corpus.outcome import BINS, Tally
from scaling.report.page import page
from scaling.report.sections import Section
from scaling.report.style import BLUE, ORANGE, Drawing, canvas, human, plain
from scaling.report.tables import escape, table

Tallies = Mapping[str, Mapping[str, Tally]]  # stage -> data set -> its figures, in the order of the stages
MOST_FAULTS = 200  # rows of the table of what failed


def corpus_page(title: str, made: str, tallies: Tallies, mixture: Sequence[Sequence[str]] = ()) -> str:
    """The page.

    Args:
        title: heading.
        made: by which version and when, plain text.
        tallies: of the stages that are done.
        mixture: rows of the mixture's table, the first one its header; empty = there is none yet.
    """
    sections = [Section("stages", "From stage to stage", _stages(tallies), tuple(_bars(tallies)))]
    if mixture:
        numeric = range(1, len(mixture[0]))
        rows = [[escape(cell) for cell in row] for row in mixture]
        sections.append(Section("mixture", "Mixture", table(rows[0], rows[1:], numeric)))
    for stage, by_set in tallies.items():
        total = Tally()
        for tally in by_set.values():
            total.add(tally)
        sections.append(Section(stage, stage.capitalize(), _stage(total), tuple(_histograms(stage, total))))
    faults = [
        (stage, fault)
        for stage, by_set in tallies.items()
        for tally in by_set.values()
        for fault in sorted(tally.faults, key=lambda fault: (fault.file, fault.place))
    ]
    if faults:
        rows = [[stage, escape(fault.file), f"{fault.place:,}", escape(fault.reason)] for stage, fault in faults]
        more = f"<p>The first {MOST_FAULTS} of {len(rows):,}.</p>" if len(rows) > MOST_FAULTS else ""
        body = table(["stage", "file", "place", "what is wrong"], rows[:MOST_FAULTS], (2,))
        sections.append(Section("faults", "What could not be read", more + body))
    return page(title, made, sections)


def _stages(tallies: Tallies) -> str:
    """Text before ``tokens`` has no tokens yet; theirs are estimated by the bytes of a token in what was tokenized."""
    rate = {
        name: tally.counts["tokens"] / tally.bytes_in
        for name, tally in tallies.get("tokens", {}).items()
        if tally.bytes_in and "tokens" in tally.counts
    }
    rows = []
    for stage, by_set in tallies.items():
        for name, tally in by_set.items():
            share = f"{1 - tally.bytes_out / tally.bytes_in:.1%}" if tally.bytes_in else "–"
            cells = (tally.documents_in, tally.documents_out, tally.bytes_in, tally.bytes_out)
            counts = [f"{cell:,}" for cell in cells]
            if rate:
                sizes = (tally.bytes_in, tally.bytes_out)
                counts += [f"{size * rate[name]:,.0f}" if name in rate else "–" for size in sizes]
            rows.append([stage, escape(name), *counts, share, f"{len(tally.faults):,}"])
    tokens = ["tokens in", "out"] if rate else []
    header = ["stage", "data set", "documents in", "out", "bytes in", "out", *tokens, "bytes dropped", "faults"]
    said = "<p>Tokens are those of the stage tokens, and before it bytes times its tokens a byte.</p>" if rate else ""
    return table(header, rows, range(2, len(header))) + said


def _bars(tallies: Tallies) -> list[Drawing]:
    """Bytes after each stage, by data set."""
    names = sorted({name for by_set in tallies.values() for name in by_set})
    if not names:
        return []
    stages = [*tallies]
    with canvas(len(names), height=1.2 + 0.3 * len(stages), sharey=True) as (figure, all_axes):
        for name, axes in zip(names, all_axes, strict=True):
            # A stage that is not for the data set has no bar.
            places = [place for place, stage in enumerate(stages) if name in tallies[stage]]
            axes.barh(places, [tallies[stages[place]][name].bytes_out for place in places], color=BLUE)
            axes.set_ylim(len(stages) - 0.4, -0.6)
            axes.set_yticks(range(len(stages)), stages)
            axes.set_title(plain(name))
            axes.xaxis.set_major_formatter(human)
            axes.set_xlabel("bytes of text")
    caption = "Text that is left after each stage; before extract, HTML too. No bar: the stage is not for the data set."
    return [Drawing("stages", caption, figure)]


def _stage(tally: Tally) -> str:
    rows = [[escape(what), f"{number:,}"] for what, number in tally.counts.items()]
    rows += [[escape(what), escape(note)] for what, note in notes(tally).items()]
    parts = [table(["counted", "number"], rows, (1,)) if rows else "<p>Nothing was dropped.</p>"]
    for reason, found in tally.examples.items():
        shown = "".join(f"<p><small>{escape(id)}</small><br>{escape(text)}</p>" for _, id, text in found)
        parts.append(f"<details><summary>{escape(reason)}: examples</summary>{shown}</details>")
    return "\n".join(parts)


def notes(tally: Tally) -> dict[str, str]:
    """The notes of a stage as texts, for this page and for the terminal."""
    found = {}
    for name, value in tally.notes.items():
        found[name] = "unknown" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
    return found


def _histograms(stage: str, tally: Tally) -> list[Drawing]:
    drawings = []
    for name, bins in tally.histograms.items():
        with canvas(height=3.2) as (figure, (axes,)):
            axes.bar([(i + 0.5) / BINS for i in range(BINS)], bins, width=0.9 / BINS, color=ORANGE)
            axes.set_xlim(0, 1)
            axes.set_xlabel(name)
            axes.set_ylabel("documents")
            axes.yaxis.set_major_formatter(human)
        drawings.append(Drawing(f"{stage}-{name}", f"Documents by {name}.", figure))
    return drawings
