r"""A translation by words and bigrams, as a baseline of ``translation.py``: no network, half a minute.

    python experiments/seq2seq/bigram.py multi30k > translations.txt

Each German word becomes one English word, in the same order: the one with the largest t(english | german) p(english |
the English word before it), by a beam of 8. t is IBM's model 1 after ten rounds of expectation maximisation (Brown et
al. 1993, section 4.2), in which a word may also stand for nothing; p are bigrams, smoothed by words alone.

Machine: one CPU core. Time and score: docs/results/translation.
"""

import collections
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROUNDS, BEAM, CHOICES, BACK_OFF = 10, 8, 8, 0.2
NOTHING, START = "", "<s>"


def words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


def pairs(path: Path) -> Iterator[tuple[list[str], list[str]]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        yield words(record["de"]), words(record["en"])


def translation_table(data: list[tuple[list[str], list[str]]]) -> dict[str, dict[str, float]]:
    """t(english | german), and t(nothing | german) for words that English leaves out."""
    table: dict[str, dict[str, float]] = collections.defaultdict(lambda: collections.defaultdict(lambda: 1.0))
    for _ in range(ROUNDS):
        counts: dict[str, dict[str, float]] = collections.defaultdict(lambda: collections.defaultdict(float))
        for german, english in data:
            for target in english:
                weights = np.array([table[source][target] for source in german])
                for source, weight in zip(german, weights / weights.sum(), strict=True):
                    counts[source][target] += weight
        table = {source: _normalized(found) for source, found in counts.items()}
    totals = collections.Counter(word for german, _ in data for word in german)
    for source, found in table.items():
        mass = sum(counts[source].values()) / totals[source]  # English words that it stands for, in the mean
        found[NOTHING] = max(1e-3, 1 - mass)
    return table


def _normalized(counts: dict[str, float]) -> dict[str, float]:
    total = sum(counts.values())
    return collections.defaultdict(float, {word: count / total for word, count in counts.items()})


def translate(german: list[str], table: dict[str, dict[str, float]], bigrams: "Bigrams") -> list[str]:
    beam: list[tuple[float, list[str]]] = [(0.0, [])]
    for source in german:
        choices = sorted(table.get(source, {source: 1.0}).items(), key=lambda each: -each[1])[:CHOICES]
        grown = []
        for score, text in beam:
            for word, probability in choices:
                step = math.log(probability + 1e-12)
                if word != NOTHING:
                    step += math.log(bigrams(text[-1] if text else START, word))
                else:
                    step += math.log(1e-2)  # as unlikely as a usual word
                grown.append((score + step, [*text, word] if word != NOTHING else text))
        beam = sorted(grown, key=lambda each: -each[0])[:BEAM]
    return beam[0][1]


class Bigrams:
    def __init__(self, texts: list[list[str]]) -> None:
        self._one = collections.Counter(word for text in texts for word in text)
        self._two = collections.Counter(pair for text in texts for pair in zip([START, *text], text, strict=False))
        self._before = collections.Counter(word for text in texts for word in [START, *text[:-1]])
        self._total = sum(self._one.values())

    def __call__(self, before: str, word: str) -> float:
        alone = (self._one[word] + 0.1) / (self._total + 0.1 * len(self._one))
        both = self._two[before, word] / self._before[before] if self._before[before] else 0.0
        return BACK_OFF * alone + (1 - BACK_OFF) * both


def main(folder: Path) -> None:
    """Prints a translation of each test sentence on a line."""
    training = list(pairs(folder / "train.jsonl"))
    table, bigrams = translation_table(training), Bigrams([english for _, english in training])
    for german, _ in pairs(folder / "test_2016_flickr.jsonl"):
        print(" ".join(translate(german, table, bigrams)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
