"""The tables and the figure of README.md, from the .csv files beside this file.

    python docs/results/filtering/figure.py                   # tables on stdout, and filtering.png
    python docs/results/filtering/figure.py LEVELS MIXTURES   # the runs of both sweeps -> the .csv files first

``parts.csv`` has the whole crawl and random parts of it, ``best.csv`` what filters left of it, ``mixtures.csv`` the
mixtures with three seeds. N is parameters; D and unique tokens are bytes; the loss is in nats a byte of held-out text.
"""

import csv
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from scaling.laws.fit import Fit, fit_law
from scaling.laws.points import read_table
from scaling.report.style import BLUE, GREEN, ORANGE, Drawing, canvas, human
from scaling.runs.run_directory import find_runs, load

HERE = Path(__file__).parent
COLUMNS = ("corpus", "share", "params", "tokens", "unique", "flops", "loss", "seed")
COLOURS = (ORANGE, GREEN, BLUE)  # of the lengths
CRAWL = 1_827_635  # bytes of the crawl without copies, each document's end counted as one
SHARES = (6.25, 12.5, 25, 50, 100)
Losses = dict[tuple[int, int, float], float]  # (N, D, share of the crawl in percent) -> loss


def _collect(folders: list[str]) -> None:
    """The finished runs of both sweeps, as tables."""
    tables: dict[str, list[list[Any]]] = {"parts": [], "best": [], "mixtures": []}
    for run in map(load, find_runs(folders)):
        if not run.evals or run.evals[-1]["tokens"] < run.config["train"]["tokens"]:
            continue
        name = re.search(r"(raw|built|(best|part)[\d.]+)(/tokens/crawl)?$", run.config["data"]["train"])[1]
        kind = name.rstrip("0123456789.")
        table = "mixtures" if kind == name else "best" if kind == "best" and name != "best100" else "parts"
        share = float(name.removeprefix(kind) or 100)
        tokens, loss = run.evals[-1]["tokens"], run.evals[-1]["loss"]
        sizes = [run.num_params("active"), tokens, run.values["unique_tokens"], f"{run.flops_per_token * tokens:.6g}"]
        tables[table].append([name, share, *sizes, f"{loss:.5f}", run.config["seed"]])
    for table, rows in tables.items():
        rows.sort(key=lambda row: (*row[2:4], row[1], row[0], row[-1]))
        with (HERE / f"{table}.csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


def _rows(table: str) -> list[dict[str, str]]:
    with (HERE / f"{table}.csv").open() as file:
        return list(csv.DictReader(file))


def _losses(table: str) -> Losses:
    return {(int(r["params"]), int(r["tokens"]), float(r["share"])): float(r["loss"]) for r in _rows(table)}


def _mixtures() -> None:
    by_corpus: dict[str, list[float]] = {}
    for row in _rows("mixtures"):
        by_corpus.setdefault(row["corpus"], []).append(float(row["loss"]))
    for corpus, losses in by_corpus.items():
        shown = ", ".join(f"{loss:.4f}" for loss in losses)
        print(f"| {corpus} | {shown} | {statistics.fmean(losses):.4f} ± {statistics.stdev(losses):.4f} |")


def _law_loss(law: Fit, n: int, d: int, share: Any) -> Any:
    """What the law gives for text as good as the whole crawl, of which there is a share, percent."""
    return law.loss(params=n, tokens=d, unique=np.minimum(d, share / 100 * CRAWL))


def _table(kept: Losses) -> None:
    """The loss at each share, the lowest of a row in bold."""
    shares = SHARES[::-1]
    print("\n| parameters | bytes |", " | ".join(f"{share:g} %" for share in shares), "|")
    for n, d in sorted({(n, d) for n, d, _ in kept}):
        losses = {share: kept[n, d, share] for share in shares if (n, d, share) in kept}
        lowest = min(losses, key=lambda share: losses[share])
        shown = [f"{losses[share]:.3f}" if share in losses else "" for share in shares]
        shown[shares.index(lowest)] = f"**{losses[lowest]:.3f}**"
        print(f"| {human(n)} | {human(d)} |", " | ".join(shown), "|")


def _parts_table(law: Fit, kept: Losses, parts: Losses) -> None:
    """Of a random part: what repetition costs, measured and by the law; of the best part as large: what it gains."""
    print("\n| parameters | bytes | share | epochs | repetition | by the law | better text | together |")
    for n, d, share in sorted(parts):
        if share == 100 or not {(n, d, 100), (n, d, share)} <= kept.keys():
            continue
        whole, drawn, best = kept[n, d, 100], parts[n, d, share], kept[n, d, share]
        said = float(_law_loss(law, n, d, share) - _law_loss(law, n, d, 100))
        changes = [f"{x:+.3f}".replace("-", "−") for x in (drawn - whole, said, best - drawn, best - whole)]
        epochs = max(1, d / CRAWL * 100 / share)
        print(f"| {human(n)} | {human(d)} | {share:g} % | {epochs:.1f} |", " | ".join(changes), "|")


def _figure(law: Fit, kept: Losses, parts: Losses) -> Drawing:
    sizes = sorted({n for n, _, _ in parts})
    with canvas(len(sizes), 9.2, 3.7) as (figure, panels):
        for axes, n in zip(panels, sizes, strict=True):
            for colour, d in zip(COLOURS, sorted({d for _, d, _ in parts}), strict=True):
                drawn = {share: loss for (a, b, share), loss in parts.items() if (a, b) == (n, d)}
                best = {share: loss for (a, b, share), loss in sorted(kept.items()) if (a, b) == (n, d)}
                axes.plot(list(best), list(best.values()), "o-", color=colour, markersize=4, label=f"{human(d)} bytes")
                if len(best) < 2:
                    continue
                lowest = min(best, key=lambda share: best[share])
                axes.plot(lowest, best[lowest], "*", color=colour, markersize=13)
                axes.plot(list(drawn), list(drawn.values()), "o", color=colour, mfc="white", markersize=5)
                shares = np.geomspace(SHARES[0], 100, 60)
                axes.plot(shares, _law_loss(law, n, d, shares), ":", color=colour, linewidth=1.2)
            axes.set_xscale("log", base=2)
            axes.set_xticks(SHARES, [f"{share:g}" for share in SHARES])
            axes.set(title=f"{human(n)} parameters", xlabel="share of the crawl, %")
        panels[0].set_ylabel("held-out loss, nats a byte")
        panels[0].legend(loc=(0.03, 0.53))
    return Drawing("filtering", "", figure)


def main() -> None:
    """Prints the tables and writes the figure."""
    if len(sys.argv) > 1:
        _collect(sys.argv[1:])
    _mixtures()
    law = fit_law(read_table(HERE / "parts.csv", {}), "data_constrained", resamples=0)
    parts = _losses("parts")
    kept = _losses("best") | {key: loss for key, loss in parts.items() if key[-1] == 100}
    _table(kept)
    _parts_table(law, kept, parts)
    _figure(law, kept, parts).save(epath.Path(HERE), kinds=("png",))


if __name__ == "__main__":
    main()
