"""What a fine-tuned run says of texts: probabilities of classes, a number, the answer to a question, or tags."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from scaling.align import task as tasks
from scaling.align.finetune import FILE, layout
from scaling.align.marking import Marker
from scaling.align.task import Example, Task
from scaling.data.batch import Scored, filled, scored
from scaling.evaluate.tasks import readers
from scaling.evaluate.tasks.fields import fields_of
from scaling.evaluate.tasks.request import Item
from scaling.evaluate.tasks.templates import placeholders
from scaling.generate.generator import bucket
from scaling.interop.served import Served, load_served
from scaling.model import decoder
from scaling.objectives.classification import answers
from scaling.objectives.objective import forward
from scaling.parallel.sharding import batch_sharding
from scaling.runs.config_json import read_config_json


class Classifier:
    """A fine-tuned model with its task.

    Args:
        served: the model, of as many outputs as the task needs.
        task: see there.
    """

    def __init__(self, served: Served, task: Task) -> None:
        form, network = task.form, served.network
        self.served, self.task, self._layout = served, task, layout(served.words, network.model.causal)

        def compute(params: decoder.Params, batch: Scored) -> jax.Array:
            model = decoder.merge(network, params)
            hidden, batch, _ = forward(model, jax.tree.map(lambda x: x[0], batch), None)
            found = answers(model, hidden, batch, form, 0.0, None)
            return jax.nn.softmax(found) if form.classes else found

        self._compute = jax.jit(compute, out_shardings=jax.NamedSharding(served.mesh, jax.P()))

    def excess(self, example: Example) -> int:
        """By how many tokens its longest row exceeds the model's context; 0 or less if it fits."""
        return max(len(row.ids) for row in self._layout(example)) - self.served.network.model.context_length

    def __call__(self, examples: Sequence[Example], batch_size: int = 16) -> np.ndarray:
        """Probabilities float32 [n, classes], or numbers [n, 1]; like lengths are computed together.

        Args:
            examples: of ``Task.example``.
            batch_size: examples at a time; with their rows a multiple of the shards of a batch.

        Raises:
            ValueError: an example that is longer than the model's context.
        """
        most, rows = self.served.network.model.context_length, self.task.form.rows
        read = [self._layout(example) for example in examples]
        lengths = [max(len(row.ids) for row in each) for each in read]
        for example, length in zip(examples, lengths, strict=True):
            if length > most:
                raise ValueError(f"{example.where}: its {length} tokens do not fit the model's {most}")
        found = np.zeros((len(read), max(1, self.task.form.classes)), np.float32)
        order = sorted(range(len(read)), key=lengths.__getitem__)
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            room = bucket(max(lengths[i] for i in chosen), largest=most)
            places = {
                (0, place * rows + number): scored(row.ids, room, 0, types=row.types)
                for place, i in enumerate(chosen)
                for number, row in enumerate(read[i])
            }
            batch = filled((1, batch_size * rows), places)
            with jax.set_mesh(self.served.mesh):
                placed = jax.device_put(batch, batch_sharding(self.served.mesh))
                found[chosen] = np.asarray(self._compute(self.served.params, placed))[: len(chosen)]
        return found


def load(run_dir: epath.PathLike, axes: str = "", dtype: str = "float32") -> Classifier:
    """The model of a run of ``align finetune``.

    Raises:
        FileNotFoundError: no run there.
        ValueError: it is no such run, or its task marks words.
    """
    found = load_any(run_dir, axes, dtype)
    if isinstance(found, Marker):
        raise ValueError(f"{run_dir} marks the words of texts ({found.task.name}), and gives texts no class or number")
    return found


def load_any(run_dir: epath.PathLike, axes: str = "", dtype: str = "float32") -> Classifier | Marker:
    """The same for any task; errors as of ``load``."""
    path = epath.Path(run_dir) / FILE
    if not path.exists():
        raise ValueError(f"{run_dir} is no run of `scaling align finetune`, which keeps its task as {FILE}")
    task, served = tasks.load(path), load_served(run_dir, None, axes, dtype)
    if task.marks:
        return Marker(served, task, read_config_json(run_dir)["config"]["train"]["sequence_length"])
    return Classifier(served, task)


def said(model: Classifier | Marker, path: Path, batch_size: int = 16) -> Iterator[str]:
    """A JSON object for each text of a file (``items``): a class, a number, an answer or tags."""
    if isinstance(model, Marker):
        passages = [model.task.passage(item, labelled=False) for item in items(model.task, path)]
        yield from (json.dumps(each, ensure_ascii=False) for each in model(passages, batch_size))
    else:
        asked = examples(model.task, path)
        yield from lines(model.task, model(asked, batch_size), asked)


def rate(classifier: Classifier, label: str, texts: Sequence[str]) -> list[float]:
    """The probability of a class for each text, or the number that a run without classes gives.

    A text that is longer than the model's context loses its beginning.

    Args:
        classifier: its task reads one text.
        label: one of its classes, in any case of letters.
        texts: not empty.

    Raises:
        ValueError: the task reads more than one text, or has no such class.
    """
    task, names = classifier.task, [name.casefold() for name in classifier.task.names]
    fields = [name for template in task.layout.texts for name in placeholders(template)]
    if len(task.layout.texts) != 1 or len(fields) != 1 or task.form.chooses:
        raise ValueError(f"the classifier for {task.name} must read one text, and reads {', '.join(fields)}")
    if task.form.classes and label.casefold() not in names:
        raise ValueError(f"the classifier has the classes {', '.join(task.names)}, and no {label!r}")

    def example(text: str) -> Example:
        return task.example(Item("", "an answer", {fields[0]: text}), labelled=False)

    asked = []
    for text in texts:
        while (more := classifier.excess(example(text))) > 0:
            text = text[more:]
        asked.append(example(text))
    column = names.index(label.casefold()) if task.form.classes else 0
    return [float(x) for x in classifier(asked)[:, column]] if asked else []


def examples(task: Task, path: Path) -> list[Example]:
    """The items of a file as examples; errors as of ``items``, and an empty text."""
    return [task.example(item, labelled=False) for item in items(task, path)]


def items(task: Task, path: Path) -> list[Item]:
    """What a file holds to be classified: by the names of the task's fields, without labels; in .txt, a text a line.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a malformed file, or a record that lacks a field; with its line.
    """
    source = tasks.own_source(task.without_label(), path)
    return [
        Item("", where, fields)
        for where, record in readers.read(source, source.test, {"test": (path,)}, "test")
        if (fields := fields_of(record, source, where)) is not None
    ]


def lines(task: Task, found: np.ndarray, asked: Sequence[Example]) -> Iterator[str]:
    """A JSON object for each example: its label with the probabilities, its choice with those, or its number."""
    for row, example in zip(found.tolist(), asked, strict=True):
        answer: dict[str, Any]
        if task.form.chooses:
            there = row[: len(example.rows)]
            answer = {"choice": there.index(max(there)), "probabilities": there}
        elif task.form.classes:
            by_name = dict(zip(task.names, row, strict=True))
            answer = {"label": max(by_name, key=by_name.__getitem__), "probabilities": by_name}
        else:
            answer = {"number": row[0]}
        yield json.dumps(answer, ensure_ascii=False)
