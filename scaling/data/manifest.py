"""The manifest of a built corpus: its data sets, and the weights by which a training mixes them.

A corpus is a folder with ``manifest.json``, and a token directory for each data set. ``config.data.train`` may name the
folder or the file; that is the same as a ``config.data.mixture`` of the token directories with their weights.
"""

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

from scaling import durable, json_text
from scaling.data import shards, sources

FORMAT_VERSION = 1
FILE = "manifest.json"


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set of a corpus.

    Attributes:
        name: its name.
        path: of its token directory in the folder of the manifest.
        documents, tokens: that it has; the end of a document is a token.
        sha256: of the ``index.json`` of the token directory, which has those of its shards.
        weight: share of training sequences, as it was given; the weights need not add up to 1.
        epochs: how often it is seen in a training of ``Manifest.training_tokens``.
        text: glob of its clean text in the folder of the manifest; "" = the text was not kept.
    """

    name: str
    path: str
    documents: int
    tokens: int
    sha256: str
    weight: float
    epochs: float
    text: str = ""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json``.

    Attributes:
        training_tokens: length of the training that ``DataSet.epochs`` are counted for.
        tokenizer, tokenizer_fingerprint: that made the tokens.
        datasets: at least one.
        config: of the build.
        versions: of the code that built it.
    """

    training_tokens: int
    tokenizer: str
    tokenizer_fingerprint: str
    datasets: tuple[DataSet, ...]
    config: dict[str, Any]
    versions: dict[str, str]
    format_version: int = FORMAT_VERSION

    def write(self, folder: Path) -> None:
        """Writes ``manifest.json`` whole, or not at all; equal manifests give equal bytes.

        Raises:
            OSError: cannot write.
        """
        durable.replace_text(folder / FILE, json.dumps(dataclasses.asdict(self), indent=1) + "\n", synced=True)


def read(path: str) -> Manifest:
    """Reads a manifest, local or remote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no manifest, or one of another format version.
    """
    try:
        values: dict[str, Any] = json_text.parse(sources.read_bytes(path), path)
        found = Manifest(**(values | {"datasets": tuple(DataSet(**values) for values in values["datasets"])}))
        for each in found.datasets:
            if not 0 < each.weight < math.inf:
                raise ValueError(f"the weight of {each.name} must be more than 0, not {each.weight!r}")
        if not found.datasets:
            raise ValueError("it has no data sets")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged manifest of a corpus ({error})") from None
    if found.format_version != FORMAT_VERSION:
        raise ValueError(f"{path}: format version {found.format_version}, but this code reads {FORMAT_VERSION}")
    return found


def mixture(source: str) -> dict[str, float]:
    """The token directories of a corpus and their weights; empty if the source is no corpus.

    Args:
        source: a training source. A folder with a manifest and the manifest itself are a corpus.

    Raises:
        FileNotFoundError: the manifest or a token directory that it names is missing.
        ValueError: a damaged manifest, or a token directory that is not the one that was built.
    """
    if source in ("", "books"):
        return {}
    folder = source.rstrip("/")
    if Path(source).name == FILE:
        folder = source.removesuffix(FILE).rstrip("/") or "."
    elif not sources.is_file(f"{folder}/{FILE}"):
        return {}
    found = {}
    for each in read(f"{folder}/{FILE}").datasets:
        directory = f"{folder}/{each.path}"
        try:
            index = sources.read_bytes(f"{directory}/{shards.INDEX}")
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{directory} is missing, which {folder}/{FILE} names: restore it, or build the corpus again"
            ) from None
        if hashlib.sha256(index).hexdigest() != each.sha256:
            raise ValueError(
                f"{directory} holds other tokens than {folder}/{FILE} says: restore it, or build the corpus again"
            )
        found[directory] = each.weight
    return found
