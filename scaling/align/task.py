"""Tasks of fine-tuning: which texts of a record are read in which order, and what is to be said of them.

What is said is a class or a number of a text, the span of a text that answers a question, or a tag of each word. A task
is a TOML file. Its ``[[source]]`` tables are those of an evaluation task (docs/task_files.md); with ``data_of`` it has
those of a shipped evaluation task. docs/how-to/finetune.md describes the file.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from etils import epath

from scaling.align.passages import Passage, answered, tagged
from scaling.config import schema as cfg
from scaling.config.refusal import refused
from scaling.data.chat.dialogues import Skipped
from scaling.data.rows import held_out
from scaling.evaluate.tasks import catalogue, file, readers
from scaling.evaluate.tasks.checks import one_of
from scaling.evaluate.tasks.fields import fields_of
from scaling.evaluate.tasks.kinds.choices import gold_place
from scaling.evaluate.tasks.request import Item
from scaling.evaluate.tasks.task import Field, Source, Split, nearest
from scaling.evaluate.tasks.templates import placeholders
from scaling.objectives.classification import Form

T = TypeVar("T")

SHIPPED = Path(__file__).parent / "tasks"
# Files whose names no source has are read by their own keys.
_BY_SUFFIX = {".jsonl": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".txt": "lines"}


class Example(NamedTuple):
    """A record: where it stands, the texts of each of its rows, and its class from 0, or its number."""

    where: str
    rows: tuple[tuple[str, ...], ...]
    label: float = 0.0


@dataclasses.dataclass(frozen=True)
class Layout:
    """The keys of a task file beside its sources.

    Attributes:
        about: one line for people.
        data_of: a shipped evaluation task, whose sources are read.
        texts: templates of the texts of a row, in their order.
        label: template of the answer: one of the labels, the place of the choice from 0, or a number.
        labels: the classes, as ``label`` spells them; as a table, with what they are called in answers.
        choices: templates, or the name of a field that is a list: a row for each, which has it as its last text.
        most_choices: of a record; 0 = as many as there are templates.
        both_orders: two texts without an order: a row for each order, whose final states are added.
        span: template of the place, in characters from 0, where the answer ``label`` stands in the last of the texts.
        references: with ``span``, the name of a field that is a list of accepted answers; empty = the answer alone.
        words: the name of a field that is a list of words; ``label`` is then the name of the list of their tags.
    """

    about: str = ""
    data_of: str = ""
    texts: tuple[str, ...] = ()
    label: str = ""
    labels: tuple[str, ...] | Mapping[str, str] = ()
    choices: tuple[str, ...] | str = ()
    most_choices: int = 0
    both_orders: bool = False
    span: str = ""
    references: str = ""
    words: str = ""


@dataclasses.dataclass(frozen=True)
class Task:
    """A task of fine-tuning.

    Attributes:
        name: for messages.
        text: of its file.
        layout: see there.
        sources: with a field for each name that the layout uses.
    """

    name: str
    text: str
    layout: Layout
    sources: tuple[Source, ...]

    @property
    def form(self) -> Form:
        """How its rows become an answer."""
        layout = self.layout
        if layout.choices:
            most = layout.most_choices or len(layout.choices)
            return Form(rows=most, classes=most, chooses=True)
        return Form(rows=2 if layout.both_orders else 1, classes=len(layout.labels))

    @property
    def marks(self) -> bool:
        """Whether words of a text are marked, as a span or by tags; the answer is then of no ``form``."""
        return bool(self.layout.words or self.layout.span)

    @property
    def names(self) -> list[str]:
        """Of the classes, as answers have them."""
        labels = self.layout.labels
        return list(labels.values() if isinstance(labels, Mapping) else labels)

    def without_label(self) -> "Task":
        """The same for records of which nothing is known."""
        layout = dataclasses.replace(self.layout, label="", span="", references="")
        return dataclasses.replace(self, layout=layout)

    def example(self, item: Item, labelled: bool = True) -> Example:
        """An item as rows of texts.

        Raises:
            ValueError: an empty text, a wrong number of choices, or an unknown label; begins with the item's place.
        """
        layout = self.layout
        texts = tuple(item.not_empty(item.texts(layout.texts), "texts"))
        rows: tuple[tuple[str, ...], ...] = (texts,)
        if layout.both_orders:
            rows = (texts, texts[::-1])
        elif layout.choices:
            choices = item.not_empty(item.texts(layout.choices), "choices")
            if not 2 <= len(choices) <= self.form.rows:
                raise ValueError(f"{item.where}: {len(choices)} choices; there must be 2 to {self.form.rows}")
            rows = tuple((*texts, choice) for choice in choices)
        return Example(item.where, rows, self._label(item, len(rows)) if labelled else 0.0)

    def passage(self, item: Item, labelled: bool = True) -> Passage:
        """An item as a text whose words are marked.

        Raises:
            ValueError: as ``passages.tagged`` and ``passages.answered``; begins with the item's place.
        """
        layout = self.layout
        if layout.words:
            words = item.fields[layout.words]
            words = words.split() if isinstance(words, str) else words
            known = tuple(layout.labels)
            return tagged(item.where, words, item.texts(layout.label) if labelled else None, known)
        texts = item.not_empty(item.texts(layout.texts), "texts")
        if not labelled:
            return answered(item.where, texts)
        answer, place = item.not_empty([item.text(layout.label)], "label")[0], item.text(layout.span)
        if not place.isdecimal():
            raise ValueError(f"{item.where}: span is {place[:40]!r}, and must be the number of a character from 0")
        return answered(item.where, texts, (answer, int(place)), item.texts(layout.references or (layout.label,)))

    def _label(self, item: Item, rows: int) -> float:
        layout = self.layout
        if layout.choices or layout.labels:
            count = rows if layout.choices else len(layout.labels)
            return float(gold_place(item, layout.label, tuple(layout.labels), count))
        text = item.text(layout.label)
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"{item.where}: the answer {text[:40]!r} must be a number")
        return number


def find(name: str) -> Task:
    """A shipped task by its name, or one by the path of its file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such task, or a mistake in its file, which is named with the key.
    """
    shipped = {path.stem: path for path in sorted(SHIPPED.glob("*.toml"))}
    if name.endswith(".toml"):
        return load(Path(name))
    if name not in shipped:
        near = f"did you mean {nearest(name, shipped)}? " if name else ""
        raise refused("align.task", name, f"{near}must be one of {', '.join(shipped)}, or the path of a .toml file")
    return load(shipped[name])


def load(path: Path | epath.Path) -> Task:
    """Reads a task file; errors as of ``find``."""
    table = file.parse(path)
    sources = table.pop("source", [])
    layout = file.read_table(Layout, table, str(path), "task")
    _check(layout, str(path))
    if layout.data_of:
        one_of(str(path), "data_of", layout.data_of, catalogue.shipped())
        found = catalogue.shipped()[layout.data_of][0].sources
    elif isinstance(sources, list):
        found = tuple(file.read_source(source, str(path)) for source in sources)
    else:
        raise ValueError(f"{path}: source must be written [[source]], since there can be several")
    for source in found:
        one_of(str(path), "source.format", source.format, readers.FORMATS)
        if readers.FORMATS[source.format].columns == "required" and not source.columns:
            raise ValueError(f"{path}: source.columns is missing; the format {source.format} needs their names")
    named = tuple(_with_keys(source, layout) for source in found)
    return Task(path.stem, path.read_text(encoding="utf-8-sig"), layout, named)


def _check(layout: Layout, path: str) -> None:
    """Refuses keys that are missing, or do not go together."""
    for key in ("words" if layout.words else "texts", "label"):
        if not getattr(layout, key):
            raise ValueError(f"{path}: {key} is missing")
    others = [key for key in ("texts", "choices", "both_orders", "span", "references") if getattr(layout, key)]
    if layout.words and others:
        raise ValueError(f"{path}: {others[0]} does not go with words, whose tags are the answer")
    if layout.words and len(layout.labels) < 2:
        raise ValueError(f"{path}: labels must be at least two; they are the tags that a word may have")
    if layout.span and (layout.labels or layout.choices or layout.both_orders or len(layout.texts) > 2):
        raise ValueError(f"{path}: span is for one text or two, without labels, choices and both_orders")
    if layout.references and not layout.span:
        raise ValueError(f"{path}: references go with span")
    if layout.both_orders and (len(layout.texts) != 2 or layout.choices):
        raise ValueError(f"{path}: both_orders = true is for two texts, without choices")
    if (layout.choices and layout.labels and len(layout.labels) < 2) or len(layout.labels) == 1:
        raise ValueError(f"{path}: labels must be at least two")
    if isinstance(layout.choices, str) and layout.choices and layout.most_choices < 2:
        raise ValueError(f"{path}: most_choices is missing; the field {layout.choices!r} has at least 2 choices")


def _used(layout: Layout) -> list[str]:
    if layout.words:
        return [layout.words, *([layout.label] if layout.label else [])]
    choices = layout.choices if isinstance(layout.choices, tuple) else ()
    templates = [*layout.texts, layout.label, layout.span, *choices]
    names = [name for template in templates for name in placeholders(template)]
    names += [layout.references] if layout.references else []
    return [*names, layout.choices] if isinstance(layout.choices, str) and layout.choices else names


def _with_keys(source: Source, layout: Layout) -> Source:
    """Names that a source has no field for are keys of its records."""
    kept = [*source.keep, *(name for split in (source.test, source.train) if split for name in split.keep)]
    own = {name: Field(path=name) for name in (*_used(layout), *kept)}
    return dataclasses.replace(source, fields=own | dict(source.fields))


def read(task: Task, place: str, split: str, skipped: Skipped) -> Iterator[Example]:
    """The examples of a file, or of a split in a folder that has the files of the task; arguments as of ``made``."""
    return made(task, place, split, skipped, task.example)


def made(task: Task, place: str, split: str, skipped: Skipped, make: Callable[[Item], T]) -> Iterator[T]:
    """What is made of the items of a file, or of a split in a folder that has the files of the task.

    Args:
        task: see there.
        place: local path. A file whose name no source of the task has is read by the names of the task's fields.
        split: "train" or "test".
        skipped: where records go that lack a field, or of which ``make`` raises a ValueError.
        make: of an item.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a malformed file, or a record that cannot be used.
    """
    source, files = _found(task, place, split)
    wanted = source.test
    source = dataclasses.replace(source, keep={**source.keep, **wanted.keep})
    for where, record in readers.read(source, wanted, files, "test"):
        try:
            fields = fields_of(record, source, where)
            if fields is not None:
                yield make(Item("", where, fields))
        except ValueError as error:
            skipped.skip(where, str(error).removeprefix(f"{where}: "))


def splits(task: Task, data: cfg.Data, read: Callable[[str, str], list[T]]) -> tuple[list[T], list[T]]:
    """What is trained on, and what is held out: ``data.validation``, the test file of the folder, or a fraction.

    Args:
        task: see there.
        data: of the config.
        read: of a place and a split.
    """
    training = read(data.train, "train")
    if data.validation:
        return training, read(data.validation, "test")
    if has_split(task, data.train, "test"):
        return training, read(data.train, "test")
    return held_out(training, data.validation_fraction, data.train)


def has_split(task: Task, place: str, split: str) -> bool:
    """Whether a folder has the file of a split."""
    try:
        return Path(place).is_dir() and bool(_found(task, place, split))
    except FileNotFoundError:
        return False


def _found(task: Task, place: str, split: str) -> tuple[Source, readers.Files]:
    """The source of a split, which has become its ``test``, and its files."""
    each = [(s, s.test, s.train) if split == "test" else (s, s.train, s.test) for s in task.sources]
    sources = tuple(dataclasses.replace(s, test=wanted, train=None) for s, wanted, _ in each if wanted)
    path = Path(place).expanduser()
    if path.is_dir():
        return readers.find_source(dataclasses.replace(task, sources=sources), path)
    if not path.is_file():
        raise FileNotFoundError(f"{place!r} must be a file, or a folder with the files of the task {task.name}")
    files = {"test": (path.resolve(),)}
    # A file of the other split may be wanted, too; then all of its records.
    others = tuple(dataclasses.replace(s, test=Split(other.file), train=None) for s, _, other in each if other)
    for source in (*sources, *others):
        if readers.is_named(path.resolve(), source.test.file) and not source.test.aligned:
            return source, files
    return own_source(task, path), files


def own_source(task: Task, path: Path) -> Source:
    """How to read a file by the names of the task's fields; by the task's first source if its suffix says nothing.

    Raises:
        ValueError: the task has no source.
    """
    plain = path.with_suffix("") if path.suffix in (".gz", ".bz2") else path
    form = _BY_SUFFIX.get(plain.suffix)
    if form is not None:
        names = _used(task.layout)
        fields = {name: Field(path="line" if form == "lines" else name) for name in names}
        return Source(format=form, fields=fields, test=Split(path.name))
    if not task.sources:
        raise ValueError(f"{path}: the end of its name must be one of {', '.join(_BY_SUFFIX)}, or those with .gz")
    return dataclasses.replace(task.sources[0], test=Split(path.name), train=None)
