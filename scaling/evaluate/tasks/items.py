"""The items of a task, from its files or its generator, and one item as the texts that a prompt is made of."""

import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path

from scaling.evaluate.scoring.metrics import number
from scaling.evaluate.tasks import readers
from scaling.evaluate.tasks.fields import Fields, fields_of, render
from scaling.evaluate.tasks.synthetic import generate
from scaling.evaluate.tasks.task import Prompt, Source, Task


@dataclasses.dataclass(frozen=True)
class Item:
    id: str  # 'test/17': its split and its place there, from 0
    where: str  # for messages
    fields: Fields


@dataclasses.dataclass(frozen=True)
class Items:
    test: tuple[Item, ...]
    demonstrations: tuple[Item, ...]  # the training split, or the test items where there is none
    from_test: bool  # whether the demonstrations are the test items
    files: tuple[Path, ...]  # what was read


@dataclasses.dataclass(frozen=True)
class Option:
    """One candidate: its likelihood is that of ``completion`` after ``context``."""

    context: str
    completion: str


@dataclasses.dataclass(frozen=True)
class Rendered:
    """An item as text, without description and demonstrations."""

    context: str
    options: tuple[Option, ...]  # choices and partial: the candidates; completion: the target; else none
    gold: int  # the right option
    target: str  # as a demonstration shows it, with the space before it
    references: tuple[str, ...]  # free_form: the accepted answers


def read_items(task: Task, data: str | Path | None = None, demonstrations: bool = True) -> Items:
    """All items of a task.

    Args:
        task: from ``catalogue.find_tasks`` or ``task_file.load``.
        data: directory of local files; not used by generators.
        demonstrations: False leaves the training split unread.

    Raises:
        FileNotFoundError: the files are not there.
        ValueError: no data directory, or a malformed file or record (named, with its line).
    """
    if task.generator is not None:
        return _generated(task)
    source, files = readers.find_source(task, data)
    paths = tuple(path for found in files.values() for path in found)
    test = _read(task, source, files, "test")
    if "train" not in files:
        return Items(test, test, True, paths)
    train = _read(task, source, files, "train") if demonstrations else ()
    return Items(test, train, False, paths)


def _read(task: Task, source: Source, files: readers.Files, name: str) -> tuple[Item, ...]:
    split = source.test if name == "test" else source.train
    assert split is not None
    found = []
    for place, (where, record) in enumerate(readers.read(source, split, files, name)):
        if (fields := fields_of(record, source, where)) is not None:
            found.append(Item(f"{name}/{place}", where, fields))
    if not found:
        raise ValueError(f"{files[name][0]} holds no items for task {task.name}")
    return tuple(found)


def _generated(task: Task) -> Items:
    spec = task.generator
    assert spec is not None
    key = {"arithmetic": "expression", "scrambling": "word"}[spec.name]

    def make(split: str, count: int, seed: int, exclude: frozenset[str]) -> tuple[Item, ...]:
        made = generate(spec.name, spec.kind, count, seed, exclude)
        return tuple(Item(f"{split}/{i}", f"{task.name} {split}/{i}", fields) for i, fields in enumerate(made))

    test = make("test", spec.count, spec.seed, frozenset())
    if not spec.demonstrations:
        return Items(test, test, True, ())
    taken = frozenset(str(item.fields[key]) for item in test)
    return Items(test, make("train", spec.demonstrations, spec.seed + 1, taken), False, ())


def with_space(completion: str, context: str) -> str:
    """The white-space rule: contexts end without white space, completions begin with one space.

    So the space belongs to the first token of the completion, as in GPT-2's vocabulary. Without a context there is
    none; nor before what is written without a space in the middle of a sentence (partial evaluation: ``'s``, a
    comma, a full stop).
    """
    return (
        completion if not context or re.match(r"[,.;:!?)]|'((s|d|ll|ve|re|t|m)\b|\s)", completion) else f" {completion}"
    )


def render_item(task: Task, prompt: Prompt, item: Item) -> Rendered:
    """Puts an item's fields into the templates of its task.

    Raises:
        ValueError: a gold answer that is none of the choices, an empty choice, ending or answer, or an answer that is
            no number where numbers are compared; names the record.
    """
    scoring = task.scoring
    text: Callable[[str], str] = functools.partial(render, fields=item.fields, where=item.where)
    context = text(prompt.context).rstrip()
    if scoring.kind == "text":
        return Rendered(context, (), 0, "", ())
    if scoring.kind == "choices":
        choices = _not_empty(_texts(scoring.choices, item), "scoring.choices", item.where)
        options = [Option(context, _completion(c, context)) for c in choices]
    elif scoring.kind == "partial":
        (ending,) = _not_empty([text(scoring.completion)], "scoring.completion", item.where)
        before = f"{context} " if context else ""
        candidates = _not_empty(_texts(scoring.contexts, item), "scoring.contexts", item.where)
        contexts = [f"{before}{c.rstrip()}" for c in candidates]
        options = [Option(c, with_space(ending, c)) for c in contexts]
    else:
        (target,) = _not_empty([text(scoring.target)], "scoring.target", item.where)
        completion = _completion(target, context)
        if scoring.kind == "completion":
            return Rendered(context, (Option(context, completion),), 0, completion, ())
        return Rendered(context, (), 0, completion, _references(task, item, target))
    gold = _gold(text(scoring.gold), options, _texts(scoring.labels, item), item.where)
    if scoring.kind == "choices":
        return Rendered(context, tuple(options), gold, options[gold].completion, ())
    return Rendered(options[gold].context, tuple(options), gold, options[gold].completion, ())


def _references(task: Task, item: Item, target: str) -> tuple[str, ...]:
    """The accepted answers of free_form, each once; empty ones among others are left out."""
    scoring = task.scoring
    found = item.fields[scoring.references] if scoring.references else [target]
    texts = [found] if isinstance(found, str) else found
    if scoring.remove:
        texts = [re.sub(scoring.remove, "", answer) for answer in texts]
    references = tuple(dict.fromkeys(answer.strip() for answer in texts if answer.strip()))
    if not references:
        raise ValueError(f"{item.where}: {scoring.references or 'scoring.target'!r} holds no accepted answer")
    if "exact_number" in task.metrics:
        for answer in references:
            if number(answer) is None:
                raise ValueError(f"{item.where}: the answer {answer[:40]!r} is no number, which exact_number compares")
    return references


def _not_empty(texts: list[str], what: str, where: str) -> list[str]:
    for place, text in enumerate(texts):
        if not text.strip():
            which = f"text {place} of {what}, from 0," if len(texts) > 1 else what
            raise ValueError(f"{where}: {which} is empty; an empty text cannot be scored")
    return texts


def _completion(text: str, context: str) -> str:
    return f" {text}" if context else text


def _texts(spec: str | tuple[str, ...], item: Item) -> list[str]:
    if isinstance(spec, tuple):
        return [render(template, item.fields, item.where) for template in spec]
    value = item.fields[spec]
    if isinstance(value, str):
        raise ValueError(f"{item.where}: {spec!r} must be a list of texts, not {value[:40]!r}")
    return value


def _gold(value: str, options: list[Option], labels: list[str], where: str) -> int:
    if labels:
        if value not in labels:
            raise ValueError(f"{where}: the answer {value[:40]!r} is none of {', '.join(map(repr, labels))}")
        place = labels.index(value)
    elif value.isdecimal() and len(value) < 10:
        place = int(value)
    else:
        raise ValueError(f"{where}: the answer {value[:40]!r} must be the number of a choice, from 0")
    if place >= len(options):
        raise ValueError(f"{where}: the answer is choice {place}, from 0, of only {len(options)}")
    return place
