"""The last stage: weights of the data sets, how often each is seen in training, and the manifest of the corpus.

GPT-3 (arXiv 2005.14165, Table 2.2) gives each data set a weight, the share of training examples that come from it,
whatever its size. It is seen weight x training tokens / its tokens times. Repeating text up to about 4 times is almost
as good as new text, and more gains less and less (Muennighoff et al., arXiv 2305.16264).
"""

import dataclasses
import hashlib
import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scaling import __version__, durable
from scaling.config.knob import knob
from scaling.corpus.output import folders
from scaling.data import shards
from scaling.data.manifest import DataSet, Manifest
from scaling.runs.config_json import git_commit

SEQUENCE = 2048  # tokens that GPT-3 sees at a time


@dataclasses.dataclass(frozen=True)
class Mixture:
    weights: tuple[tuple[str, float], ...] = knob(
        (), "(data set, weight)", "shares of training sequences, which need not add up to 1; () = those of the tokens"
    )
    tokens: int = knob(0, "tokens", "length of the training that epochs are counted for; 0 = the tokens of the corpus")
    most_epochs: float = knob(4.0, "epochs", "the build says aloud which data sets a training would see more often")
    text: bool = knob(False, "", "whether the clean text is kept, too, as Parquet files in text/")


def check(knobs: Mixture, names: Sequence[str]) -> None:
    """Refuses weights that do not fit the data sets; for the beginning of a build.

    Args:
        knobs: of the stage.
        names: of all data sets.

    Raises:
        ValueError: a weight for no data set, a data set without a weight, or a value that is out of range.
    """
    there = ", ".join(names)
    given = [entry[0] if isinstance(entry, tuple) and len(entry) == 2 else None for entry in knobs.weights]
    for entry, name in zip(knobs.weights, given, strict=True):
        if name is None:
            raise ValueError(f"mixture.weights must hold pairs of (data set, weight), not {entry!r}")
        if name not in names:
            raise ValueError(f"mixture.weights names {name!r}, which is no data set; there are {there}")
        if given.count(name) > 1:
            raise ValueError(f"mixture.weights names {name} twice; add up its weights")
        weight = entry[1]
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise ValueError(
                f"mixture.weights: the weight of {name} must be a number above 0, not {weight!r}; to leave it out, "
                "remove it from the data sets of the build"
            )
    if given and (missing := [name for name in names if name not in given]):
        raise ValueError(f"mixture.weights has no weight for {', '.join(missing)}; there are the data sets {there}")
    if knobs.tokens < 0:
        raise ValueError(f"mixture.tokens must be at least 1, or 0 for the tokens of the corpus, not {knobs.tokens}")
    if not knobs.most_epochs > 0:
        raise ValueError(f"mixture.most_epochs must be more than 0, not {knobs.most_epochs}")


def mixed(knobs: Mixture, datasets: Sequence[DataSet]) -> tuple[int, tuple[DataSet, ...]]:
    """Fills in weights and epochs.

    Args:
        knobs: of the stage.
        datasets: with their tokens.

    Returns:
        The length of training, and the data sets.

    Raises:
        ValueError: as of ``check``.
    """
    check(knobs, [each.name for each in datasets])
    weights = dict(knobs.weights) or {each.name: float(each.tokens) for each in datasets}
    total, length = sum(weights.values()), knobs.tokens or sum(each.tokens for each in datasets)
    return length, tuple(
        dataclasses.replace(each, weight=weights[each.name], epochs=weights[each.name] / total * length / each.tokens)
        for each in datasets
    )


def rows(manifest: Manifest) -> list[tuple[str, ...]]:
    """The cells of Table 2.2 of GPT-3: a header, and a row for each data set with its weight and epochs."""
    total = sum(each.weight for each in manifest.datasets)
    cells: list[tuple[str, ...]] = [
        ("data set", "documents", "tokens", "weight", f"epochs in {manifest.training_tokens:,} tokens")
    ]
    for each in manifest.datasets:
        counts = f"{each.documents:,}", f"{each.tokens:,}"
        cells.append((each.name, *counts, f"{100 * each.weight / total:.1f} %", f"{each.epochs:.2f}"))
    return cells


def table(manifest: Manifest) -> str:
    """``rows`` as text, a line each."""
    cells = rows(manifest)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in cells
    )


def warnings(knobs: Mixture, manifest: Manifest, names: Sequence[str]) -> list[str]:
    """What the build says aloud of the mixture, a sentence each.

    Args:
        knobs: of the stage.
        manifest: of ``build``.
        names: of all data sets. Those without a document are left out of the mixture, those of less than one sequence
            cannot be trained on, and those that a training would see more than ``most_epochs`` times gain little.
    """
    total = sum(each.weight for each in manifest.datasets)
    there = {each.name for each in manifest.datasets}
    sentences = [
        f"{name} has no document left and is not in the mixture; the others share its weight; see in the report which "
        "stage dropped its documents"
        for name in names
        if name not in there
    ]
    for each in manifest.datasets:
        if each.tokens <= SEQUENCE:
            sentences.append(
                f"{each.name} has {each.tokens:,} tokens, and a training with sequences of {SEQUENCE:,} needs at least "
                f"{SEQUENCE + 1:,} of each data set: train on shorter ones, add text to it, or leave it out"
            )
        if each.epochs > knobs.most_epochs:
            share = 100 * each.weight / total
            sentences.append(
                f"{each.name} would be seen {each.epochs:.1f} times in a training of {manifest.training_tokens:,} "
                f"tokens, more than mixture.most_epochs={knobs.most_epochs:g}: its share is {share:.3g} %, and "
                f"{share * knobs.most_epochs / each.epochs:.3g} % would be {knobs.most_epochs:g} times; "
                "lower its weight, add text to it, or train on fewer tokens"
            )
    return sentences


def build(
    folder: Path, knobs: Mixture, names: Sequence[str], config: Mapping[str, Any], text: Mapping[str, Iterable[Path]]
) -> Manifest:
    """Writes the manifest of a corpus whose tokens are in ``tokens/NAME`` of its folder, and the text by knob.

    Args:
        folder: of the corpus.
        knobs: of the stage.
        names: of the data sets that have tokens. The weights of others are left out, so that those that are there
            share the whole.
        config: of the build, for the manifest.
        text: name of a data set -> the parts of its last stage; used if ``knobs.text``.

    Raises:
        FileNotFoundError, ValueError: no or damaged tokens, tokens of different tokenizers, or as of ``check``.
        OSError: cannot write.
    """
    if not names:
        raise ValueError("no document is left in any data set; see in the report which stage dropped them")
    if knobs.weights:
        knobs = dataclasses.replace(knobs, weights=tuple(each for each in knobs.weights if each[0] in names))
    check(knobs, names)
    indices = {name: shards.read_index(folder / "tokens" / name) for name in names}
    first = indices[names[0]]
    for name, index in indices.items():
        if index.tokenizer_fingerprint != first.tokenizer_fingerprint:
            raise ValueError(
                f"{folder / 'tokens' / name} was made with the tokenizer {index.tokenizer!r}, and {names[0]} with "
                f"{first.tokenizer!r}; they must be the same"
            )
    datasets = [
        DataSet(
            name=name,
            path=f"tokens/{name}",
            documents=index.documents,
            tokens=index.tokens,
            sha256=hashlib.sha256((folder / "tokens" / name / shards.INDEX).read_bytes()).hexdigest(),
            weight=math.nan,
            epochs=math.nan,
            text=f"text/{name}/*.parquet" if knobs.text else "",
        )
        for name, index in indices.items()
    ]
    length, weighted = mixed(knobs, datasets)
    for name in names if knobs.text else ():
        keep_text(text[name], folder / "text" / name)
    versions = {"scaling": __version__, "git": git_commit()}
    made = Manifest(length, first.tokenizer, first.tokenizer_fingerprint, weighted, dict(config), versions)
    made.write(folder)
    return made


def keep_text(parts: Iterable[Path], folder: Path) -> None:
    """Puts parts into a folder, as links to the same bytes where the file system has them, and else as copies.

    Raises:
        OSError: cannot write.
    """
    with folders.whole(folder) as made:
        for path in parts:
            try:
                os.link(path, made / path.name)
            except OSError:  # another file system, or one without links
                shutil.copyfile(path, made / path.name)
                durable.sync([made / path.name])
