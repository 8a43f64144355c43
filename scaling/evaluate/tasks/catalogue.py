"""Finding tasks: the shipped ones by name or group, a user's own by the path of its file."""

import functools
from pathlib import Path

from scaling.evaluate.tasks.file import load
from scaling.evaluate.tasks.task import Task, nearest

SHIPPED = Path(__file__).parent / "shipped"


@functools.cache
def shipped() -> dict[str, tuple[Task, ...]]:
    """The shipped task files: group -> its tasks."""
    return {path.stem: load(path) for path in sorted(SHIPPED.glob("*.toml"))}


def find_tasks(names: str) -> list[Task]:
    """Tasks by a list of names with commas: of a task, of a group (all its tasks), or a path that ends in ``.toml``.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: no name, an unknown name (the nearest is named), or a mistake in a task file.
    """
    groups = shipped()
    tasks = {task.name: task for group in groups.values() for task in group}
    found: dict[str, Task] = {}
    for name in filter(None, map(str.strip, names.split(","))):
        if name.endswith(".toml"):
            new: tuple[Task, ...] = load(name)
        elif name in groups:
            new = groups[name]
        elif name in tasks:
            new = (tasks[name],)
        else:
            near = nearest(name, [*groups, *tasks])
            raise ValueError(f"{name} is no task; did you mean {near}? A task file's path must end in .toml")
        for task in new:
            if Path(found.setdefault(task.name, task).path).resolve() != Path(task.path).resolve():
                raise ValueError(f"two tasks are named {task.name}: {found[task.name].path} and {task.path}")
    if not found:
        raise ValueError(f"no task is named; the shipped groups are {', '.join(groups)}")
    return list(found.values())
