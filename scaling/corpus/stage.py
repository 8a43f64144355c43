"""What a stage gets, and the usual kind of stage: a function of a part's documents."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from scaling.corpus import documents
from scaling.corpus.outcome import Tally
from scaling.corpus.steps import Steps, Task

CONTENT = "content"  # column of pages that are not extracted yet; their texts are empty

Parts = Mapping[str, Sequence[Path]]  # data set -> its parts, in their order
RowStage = Callable[[pa.Table], tuple[pa.Table, Tally]]


@dataclasses.dataclass(frozen=True)
class Input:
    """A file of a source, with what changes if its content does."""

    source: tuple[str, ...]
    path: str
    size: int | None
    time: str  # or what a store has in its place


@dataclasses.dataclass(frozen=True)
class Stage:
    """Where a stage works.

    Attributes:
        steps: runs its tasks in its folder.
        parts: what it reads, of the data sets that it is for.
        all_parts: of all data sets, for stages that learn from others.
        inputs: the files of the sources.
        stamp: a digest of what the whole stage is made of.
        origins: for each part a digest of what it is made of; ``read`` and ``rows`` add those that they write.
    """

    steps: Steps
    parts: Parts
    all_parts: Parts
    inputs: Sequence[Input]
    stamp: str
    origins: dict[Path, str]

    @property
    def folder(self) -> Path:
        """The folder of the stage."""
        return self.steps.folder

    def targets(self) -> dict[str, list[Path]]:
        """Where the stage writes its parts, which have the names of those that it reads."""
        return {name: [self.folder / name / part.name for part in parts] for name, parts in self.parts.items()}

    def tallies(self) -> dict[str, Tally]:
        """The figures of each data set, of the results beside its parts."""
        found = {name: Tally() for name in self.parts}
        for name, targets in self.targets().items():
            for target in targets:
                found[name].add(Tally.of(self.steps.result(f"{name}/{target.stem}")))
        return found

    def rows(self, function: RowStage, what: str = "documents", also: str = "") -> dict[str, list[Path]]:
        """Applies a function to each part; the new parts.

        Args:
            function: picklable; of the documents of a part.
            what: the step's name, for the progress.
            also: a digest of what the function depends on besides the part and what the whole stage is made of.
        """
        targets, tasks = self.targets(), []
        for name, parts in self.parts.items():
            for part, target in zip(parts, targets[name], strict=True):
                call = functools.partial(_apply, function, part, target)
                made_of = self.origins[part] + also
                tasks.append(Task(f"{name}/{part.stem}", call, (target,), made_of))
                self.origins[target] = digest([self.stamp, made_of])
        self.steps.run(what, tasks)
        for name, parts in targets.items():
            only(self.folder / name, parts)
        return targets


def digest(values: Any) -> str:
    """A digest of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=list).encode()).hexdigest()


def only(folder: Path, parts: Sequence[Path]) -> None:
    """Deletes the parts of a folder, and their results, that are none of these: those of sources that have changed."""
    stems = {part.stem for part in parts}
    for path in folder.glob("*.*"):
        if path.is_file() and path.stem not in stems:
            path.unlink()


def _apply(function: RowStage, part: Path, target: Path) -> dict[str, Any]:
    before = documents.read(part)
    after, tally = function(before)
    documents.write(after, target)
    measured(tally, before, after)
    return tally.to_dict()


def measured(tally: Tally, before: pa.Table | None, after: pa.Table) -> None:
    """Fills in the numbers of documents and bytes, and examples of what was kept."""
    if before is not None:
        tally.documents_in += before.num_rows
        tally.bytes_in += input_bytes(before)
    tally.documents_out += after.num_rows
    tally.bytes_out += documents.text_bytes(after)
    for id, text in zip(after["id"].to_pylist(), after["text"].to_pylist(), strict=True):
        tally.example("kept", id, text)


def input_bytes(table: pa.Table) -> int:
    """Bytes of the texts, and of pages that are not extracted yet."""
    return documents.text_bytes(table) + (documents.text_bytes(table, CONTENT) if CONTENT in table.column_names else 0)
