"""A task: where its items come from, how they become a prompt, how an answer is scored.

The dataclasses below and the kinds (``kinds/``) are the only declaration of the format of a task file, which
``file.load`` reads and docs/task_files.md describes for users. Protocol: GPT-3 (arXiv 2005.14165), section 2.4 and
Appendix G.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping

from scaling.evaluate.tasks.kind import Kind, Pattern

MEASURES = ("ability", "bias")


@dataclasses.dataclass(frozen=True)
class Field:
    """How one field is taken from a record; the steps are done in this order, on each string of a list."""

    # 'a.b', 'a.*.b' (a list), '{a} {b}' (a template of paths), or a list of those, in which 'a?.*' may be absent
    path: str | tuple[str, ...] = ""
    constant: str | tuple[str, ...] | None = None  # the value itself, in place of a path
    remove: Pattern = ""  # what it matches is cut
    match: Pattern = ""  # its first group (or the whole match) is kept
    match_all: Pattern = ""  # a list of its matches takes the place of the text
    map: Mapping[str, str] = dataclasses.field(default_factory=dict)  # value -> what stands for it
    edits: tuple[str, ...] = ()  # of ``fields.EDITS``
    empty: str = ""  # what stands for an empty text or list
    as_json: bool = False  # the value, or each of a list, as JSON: for tables, which are no texts


@dataclasses.dataclass(frozen=True)
class Split:
    file: str = ""  # the end of a path, with * and ?; also found as .gz and .bz2
    aligned: Mapping[str, str] = dataclasses.field(default_factory=dict)  # record key -> file with a line for each
    keep: Mapping[str, str] = dataclasses.field(default_factory=dict)  # beside that of the source, for this split alone


@dataclasses.dataclass(frozen=True)
class Source:
    """Local files in one format. ``train`` supplies the demonstrations; without it the test items do."""

    format: str = ""  # of ``readers.FORMATS``
    records: str = ""  # json and xml: path to the list of records; keys of enclosing objects are kept
    columns: tuple[str, ...] = ()  # csv and tsv without a header, blocks: the names
    fields: Mapping[str, Field] = dataclasses.field(default_factory=dict)  # other names are keys of the record
    keep: Mapping[str, str] = dataclasses.field(default_factory=dict)  # field -> regular expression it must match
    test: Split = Split()
    train: Split | None = None


@dataclasses.dataclass(frozen=True)
class Generator:
    name: str = ""  # of ``synthetic.GENERATORS``
    kind: str = ""
    count: int = 0  # test items
    demonstrations: int = 0  # other items, for demonstrations; 0 = the test items are used
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Prompt:
    description: str = ""  # comes first
    context: str = ""  # template; the completion follows it after one space
    separator: str = "\n\n"  # between description, demonstrations and the item
    turns: Pattern = ""  # of [chat] alone: what divides a context into what user and assistant said by turns


@dataclasses.dataclass(frozen=True)
class Task:
    """One task of a file.

    Attributes:
        group: the file's name; the variants of a file share it.
        path: the file.
        about: one line for people: the data set and its paper.
        few_shot: K of "few"; GPT-3's where it has the task.
        zero_shot: the prompt at zero shots; the same as ``prompt`` unless the file has another.
        chat: what the user says in a dialogue; the same as ``zero_shot`` unless the file has another.
        scoring: one of ``kinds.KINDS``, with the values of the table ``[scoring]``.
        metadata: fields that go with each request, for breakdowns.
        sampled: the variants are a random sample of what the group stands for: its mean has the error of a sample.
        measures: of MEASURES; the mean over all tasks is of abilities.
    """

    name: str
    group: str
    path: str
    prompt: Prompt
    zero_shot: Prompt
    chat: Prompt
    scoring: Kind
    sources: tuple[Source, ...]
    generator: Generator | None
    metrics: tuple[str, ...]
    about: str = ""
    few_shot: int = 0
    metadata: tuple[str, ...] = ()
    sampled: bool = False
    measures: str = "ability"


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is spelt most like ``name``."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]
