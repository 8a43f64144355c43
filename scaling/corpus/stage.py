"""What a stage gets, and the usual kind of stage: a function of a part's documents."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from scaling import json_text
from scaling.corpus import documents
from scaling.corpus.outcome import Tally
from scaling.corpus.steps import Steps, Task

CONTENT = "content"  # column of pages that are not extracted yet; their texts are empty

Parts = Mapping[str, Sequence[Path]]  # data set -> its parts, in their order
RowStage = Callable[[pa.Table], tuple[pa.Table, Tally]]


@dataclasses.dataclass(frozen=True)
class Stage:
    """Where a stage works.

    Attributes:
        steps: runs its tasks in its folder.
        parts: what it reads, of the data sets that it is for.
        all_parts: of all data sets, for stages that learn from others.
    """

    steps: Steps
    parts: Parts
    all_parts: Parts

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
                result = target.with_suffix(".json")
                found[name].add(Tally.of(json_text.parse(result.read_bytes(), str(result))))
        return found

    def rows(self, function: RowStage, what: str = "documents") -> dict[str, list[Path]]:
        """Applies a function to each part; the new parts.

        Args:
            function: picklable; of the documents of a part.
            what: the step's name, for the progress.
        """
        targets = self.targets()
        tasks = [
            Task(f"{name}/{part.stem}", functools.partial(_apply, function, part, target), (target,))
            for name, parts in self.parts.items()
            for part, target in zip(parts, targets[name], strict=True)
        ]
        self.steps.run(what, tasks)
        return targets


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
