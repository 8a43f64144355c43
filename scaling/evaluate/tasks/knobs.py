"""Checks the tasks that a config names, without JAX, before anything is loaded or compiled."""

from scaling.config.schema import Config


def check_tasks(config: Config) -> None:
    """Refuses ``eval.tasks`` and ``eval.tasks_shots`` that cannot be found or read.

    Raises:
        ValueError: naming the knob, its value and what is wrong with it.
    """
    if not config.eval.tasks:
        return
    # Imported here, since most runs have no tasks and verbs that only need a config start faster without.
    from scaling.evaluate.tasks.catalogue import find_tasks
    from scaling.evaluate.tasks.kinds.text import Text
    from scaling.evaluate.tasks.prompts import parse_shots

    def tasks(names: str) -> None:
        for task in find_tasks(names):
            if task.scoring.rated_by:
                raise ValueError(f"{task.name} needs a classifier, which `scaling evaluate --classifier=RUN` has")
            if config.model.encoder_layers and isinstance(task.scoring, Text):
                raise ValueError(f"{task.name} is of running text, of which a model with an encoder has no likelihood")

    for name, value, read in (
        ("eval.tasks", config.eval.tasks, tasks),
        ("eval.tasks_shots", config.eval.tasks_shots, parse_shots),
    ):
        try:
            read(value)
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(f"config.{name}={value!r}: {error}") from None
