"""Table and figure of few-shot against zero-shot from the records beside this file.

    python docs/results/smollm2/few_shot.py            # items.csv -> few_shot.png, and the table of README.md on stdout
    python docs/results/smollm2/few_shot.py RUN        # RUN/samples -> items.csv first

``items.csv`` has for each task, number of shots and item whether the answer is right. Intervals are 95 %: 1.96 standard
errors over the items; of differences between numbers of shots, over the same items in pairs.
"""

import csv
import json
import math
import statistics
import sys
from pathlib import Path

from scaling.report.style import BLUE, GREEN, ORANGE, PALE, VERMILION, Drawing, canvas

HERE = Path(__file__).parent
TASKS = {  # name, colour, chance
    "piqa": ("PIQA", BLUE, 0.5),
    "arc_easy": ("ARC-Easy", VERMILION, 0.25),
    "hellaswag": ("HellaSwag", GREEN, 0.25),
    "lambada": ("LAMBADA", ORANGE, None),
}
Right = dict[str, dict[int, list[int]]]  # task -> shots -> of each item 0 or 1


def _collect(run: Path) -> None:
    """The items of a run's samples, as items.csv."""
    rows = []
    for task in TASKS:
        for path in sorted((run / "samples").glob(f"{task}-*.jsonl"), key=lambda path: int(path.stem.split("-")[-1])):
            samples = sorted(map(json.loads, path.read_text().splitlines()), key=lambda sample: sample["id"])
            shots = path.stem.split("-")[-1]
            rows += [
                (task, shots, sample["id"].split("/")[-1], int(sample["scores"]["accuracy"])) for sample in samples
            ]
    with (HERE / "items.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("task", "shots", "item", "right"), *rows])


def _read() -> Right:
    found: dict[str, dict[int, dict[str, int]]] = {}
    with (HERE / "items.csv").open() as file:
        for row in csv.DictReader(file):
            by_item = found.setdefault(row["task"], {}).setdefault(int(row["shots"]), {})
            by_item[row["item"]] = int(row["right"])
    for by_shots in found.values():
        assert len({tuple(by_item) for by_item in by_shots.values()}) == 1  # pairs need the same items
    return {task: {k: list(items.values()) for k, items in by_shots.items()} for task, by_shots in found.items()}


def _mean(values: list[int]) -> tuple[float, float]:
    """The mean, and half of its 95 % interval."""
    return statistics.fmean(values), 1.96 * statistics.stdev(values) / math.sqrt(len(values))


def _difference(more: list[int], fewer: list[int]) -> str:
    value, half = _mean([a - b for a, b in zip(more, fewer, strict=True)])
    return f"{value:+.3f} ± {half:.3f}".replace("-", "−")


def _table(found: Right) -> str:
    shots = sorted({k for by_shots in found.values() for k in by_shots})
    pairs = [(k, 0) for k in shots[1:]] + [(k, 1) for k in shots[2:]]
    lines = ["| task | chance | " + " | ".join(map(str, shots)) + " | " + " | ".join(f"{a} − {b}" for a, b in pairs)]
    lines = [lines[0] + " |", "|---" * (2 + len(shots) + len(pairs)) + "|"]
    for task, (name, _, chance) in TASKS.items():
        if task in found:
            scores = ["{:.3f} ± {:.3f}".format(*_mean(found[task][k])) for k in shots]
            changes = [_difference(found[task][a], found[task][b]) for a, b in pairs]
            lines.append(f"| {' | '.join([name, '–' if chance is None else str(chance), *scores, *changes])} |")
    return "\n".join(lines)


def _draw(found: Right) -> Drawing:
    with canvas(width=6.4, height=4.4) as (figure, (axes,)):
        shots = sorted({k for by_shots in found.values() for k in by_shots})
        for number, (task, (name, colour, chance)) in enumerate(TASKS.items()):
            if task not in found:
                continue
            # Apart, so that the bars do not hide each other.
            places = [i + 0.05 * (number - 1.5) for i in range(len(shots))]
            points = [_mean(found[task][k]) for k in shots]
            axes.errorbar(places, [v for v, _ in points], [e for _, e in points], color=colour, marker="o", capsize=3)
            axes.annotate(
                name, (places[-1], points[-1][0]), (9, 0), textcoords="offset points", va="center", color=colour
            )
            if chance is not None:
                axes.axhline(chance, color=PALE, ls="--", lw=1, zorder=1)
        axes.set_xticks(range(len(shots)), map(str, shots))
        axes.set_xlim(-0.25, len(shots) - 0.5)
        axes.set_ylim(0, None)
        axes.set_xlabel("examples in the context")
        axes.set_ylabel("accuracy")
    return Drawing("few_shot", "", figure)


def main() -> None:
    """Reads, prints and draws."""
    if len(sys.argv) > 1:
        _collect(Path(sys.argv[1]))
    found = _read()
    print(_table(found))
    (HERE / "few_shot.png").write_bytes(_draw(found)._repr_png_())


if __name__ == "__main__":
    main()
