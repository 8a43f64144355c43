"""Reads or generates the items of a task, and renders one as the texts of a prompt."""

import dataclasses
from pathlib import Path

from scaling.evaluate.scoring.metrics import METRICS
from scaling.evaluate.tasks import readers
from scaling.evaluate.tasks.fields import fields_of
from scaling.evaluate.tasks.request import Item, Rendered
from scaling.evaluate.tasks.synthetic import GENERATORS, generate
from scaling.evaluate.tasks.task import Prompt, Source, Task


@dataclasses.dataclass(frozen=True)
class Items:
    test: tuple[Item, ...]
    demonstrations: tuple[Item, ...]  # the training split, or the test items where there is none
    from_test: bool  # whether the demonstrations are the test items
    files: tuple[Path, ...]  # what was read


def read_items(task: Task, data: str | Path | None = None, demonstrations: bool = True) -> Items:
    """All items of a task.

    Args:
        task: from ``catalogue.find_tasks`` or ``file.load``.
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
    source = dataclasses.replace(source, keep={**source.keep, **split.keep})
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
    key = GENERATORS[spec.name].key

    def make(split: str, count: int, seed: int, exclude: frozenset[str]) -> tuple[Item, ...]:
        made = generate(spec.name, spec.kind, count, seed, exclude)
        return tuple(Item(f"{split}/{i}", f"{task.name} {split}/{i}", fields) for i, fields in enumerate(made))

    test = make("test", spec.count, spec.seed, frozenset())
    if not spec.demonstrations:
        return Items(test, test, True, ())
    taken = frozenset(str(item.fields[key]) for item in test)
    return Items(test, make("train", spec.demonstrations, spec.seed + 1, taken), False, ())


def render_item(task: Task, prompt: Prompt, item: Item) -> Rendered:
    """Puts an item's fields into the templates of its task.

    Raises:
        ValueError: a gold answer that is none of the choices, a text that is empty, or an accepted answer that a metric
            of the task cannot compare; names the record.
    """
    rendered = task.scoring.render(item.text(prompt.context).rstrip(), item)
    for check in filter(None, (METRICS[name].wrong_reference for name in task.metrics)):
        for answer in rendered.references:
            if wrong := check(answer):
                raise ValueError(f"{item.where}: the answer {answer[:40]!r} {wrong}")
    return rendered
