"""Tasks as texts, for the arm ``t5``: the source is the text or the two, the target a letter (arXiv 1910.10683, 2.4).

T5 writes the label as a word, and similarity as a number in steps of 0.2. Here each label is one token, a letter, so
that one pass of the decoder gives the probabilities of all of them; a similarity is their mean.
"""

import json
from pathlib import Path

import jax
import numpy as np
from etils import epath
from probes import padded

from scaling import durable
from scaling.data.pairs import framed
from scaling.interop.logits import compute
from scaling.interop.served import load_served
from scaling.runs.json_lines import read_lines

TASKS = ("sst2", "cola", "stsb", "rte", "mrpc")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
STEPS = 5.0 / (len(LETTERS) - 1)  # of a similarity from 0 to 5
ROWS = 100  # in one pass


def letters(name: str) -> str:
    """Those that stand for the labels of a task."""
    return LETTERS if name == "stsb" else LETTERS[:2]


def write(examples: Path, path: Path, name: str) -> None:
    """Writes pairs of a source and a target, of examples with ``text0``, maybe ``text1``, and ``label``."""
    lines = []
    for record in read_lines(epath.Path(examples)):
        number = round(float(record["label"]) / STEPS) if name == "stsb" else int(record["label"])
        source = " | ".join(record[key] for key in ("text0", "text1") if key in record)
        lines.append({"source": source, "target": LETTERS[number], "label": float(record["label"])})
    durable.replace_text(path, "".join(json.dumps(each) + "\n" for each in lines))


def read(run: Path, path: Path, name: str, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The labels of pairs and what a run says, float64 [n] each: the likeliest class, or the mean similarity."""
    served, records = load_served(run), read_lines(epath.Path(path))
    words = served.words
    ids, there = padded([framed(words.encode(record["source"]), words)[:length] for record in records], length)
    choices = [int(words.encode(letter)[0]) for letter in letters(name)]
    start, logits = np.full((ROWS, 1), words.decoder_start, np.int32), []
    for first in range(0, len(ids), ROWS):
        some = ids[first : first + ROWS], there[first : first + ROWS]
        out = compute(served.network, served.params, *some, None, start[: len(some[0])])
        logits.append(out[:, 0, choices])
    chances = np.asarray(jax.nn.softmax(np.concatenate(logits).astype(np.float64), axis=1))
    labels = np.array([record["label"] for record in records])
    return labels, chances @ (STEPS * np.arange(len(choices))) if name == "stsb" else chances.argmax(1)
