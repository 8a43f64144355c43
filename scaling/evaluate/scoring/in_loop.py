"""Tasks during training. Requests are built once, before the first step; later only the parameters change."""

from collections.abc import Sequence
from pathlib import Path

from jax.sharding import Mesh

from scaling.config import schema as cfg
from scaling.data.tokenizer import Tokenizer
from scaling.evaluate.scoring.evaluator import Evaluator
from scaling.evaluate.scoring.records import Result
from scaling.evaluate.tasks.catalogue import find_tasks
from scaling.evaluate.tasks.prompts import all_requests, parse_shots
from scaling.evaluate.tasks.task import Task
from scaling.model import decoder


class InLoopTasks:
    """``config.eval.tasks`` on the parameters as training holds them, on its mesh.

    Items and demonstrations are the same each time and in every run with the same tasks, whatever the run's seed, so
    that curves and runs can be compared. After the first time nothing is compiled.

    Attributes:
        notes: sentences for the user: demonstrations that were left off, items that do not fit.
    """

    def __init__(self, config: cfg.Config, words: Tokenizer, mesh: Mesh):
        """Builds the requests.

        Args:
            config: resolved; ``eval.tasks`` is not empty.
            words: the run's tokenizer.
            mesh: the run's.

        Raises:
            FileNotFoundError: a task's files are not there.
            ValueError: an unknown task, a malformed record, no item that fits the context.
        """
        self._network, self._words, self._mesh = config.network, words, mesh
        wanted = config.eval
        tasks = find_tasks(wanted.tasks)
        _check_data(tasks, wanted.tasks_data)
        try:
            self._requests = list(
                all_requests(
                    tasks,
                    parse_shots(wanted.tasks_shots),
                    seed=0,
                    data=wanted.tasks_data or None,
                    room=self._evaluator({}).room,
                    limit=wanted.tasks_limit or None,
                )
            )
        except FileNotFoundError as error:
            raise FileNotFoundError(f"config.eval.tasks_data: {error}") from None
        self.notes = [note for requests in self._requests for note in requests.notes]
        for requests in self._requests:
            requests.usable()

    def _evaluator(self, params: decoder.Params) -> Evaluator:
        return Evaluator(self._network, params, self._words, self._mesh)

    def run(self, params: decoder.Params) -> Sequence[Result]:
        """Results in the order of tasks and shots; the same in every process."""
        evaluator = self._evaluator(params)
        return [evaluator.evaluate(requests) for requests in self._requests]


def _check_data(tasks: Sequence[Task], data: str) -> None:
    """Refuses a directory that is not there, with a message that names the config's knob and not the verb's option."""
    reading = [task.name for task in tasks if task.sources]
    if reading and not data:
        raise ValueError(
            f"config.eval.tasks_data is empty, and task {reading[0]} reads local files; name their directory"
        )
    if reading and not Path(data).is_dir():
        raise FileNotFoundError(
            f"config.eval.tasks_data={data!r} is no directory; it must have the files of task {reading[0]}"
        )
