"""Imports go one way: the arrows of docs/design.md, read from the source of every module."""

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A room imports from its own line and from those below it. Lines have no circles either.
ARROWS = """
    commands launch sweep bench
    align corpus evaluate plan report laws serve
    train generate
    interop runs objectives
    model data catalog
    parallel
    config
    foundation
"""
LEVEL = {room: level for level, line in enumerate(ARROWS.split("\n")) for room in line.split()}

# Modules that lie beside the packages -> the room that they belong to.
FLAT = {
    "commands": "cli __main__",
    "foundation": "__init__ background cache durable exit_codes json_text object_store output paths platforms",
}
ROOM_OF = {module: room for room, modules in FLAT.items() for module in modules.split()}

# (importing module, imported module): why. The list must shrink: what is no longer imported fails, too.
EXCEPTIONS: dict[tuple[str, str], str] = {}

Graph = Mapping[str, set[str]]


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted([*ROOT.glob("scaling/**/*.py"), *ROOT.glob("launch/**/*.py")]):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imported(source: str, known: Mapping[str, object]) -> set[str]:
    """The known modules that a source imports, at its top or inside of functions; not only for the types."""
    found = set()
    for node in _executed(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, "imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & known.keys() or {node.module}
            found |= {node.module} if names - known.keys() else set()
    return found & known.keys()


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield child
        yield from _executed(child)


def room(module: str) -> str:
    top, *rest = module.split(".")
    if top == "launch":
        return top
    inside = rest[0] if rest else "__init__"
    return ROOM_OF.get(inside, inside)


def against_the_arrows(graph: Graph) -> set[tuple[str, str]]:
    return {(a, b) for a, targets in graph.items() for b in targets if LEVEL[room(a)] > LEVEL[room(b)]}


def circle(graph: Graph) -> list[str]:
    """Names that import each other in a circle; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def of_rooms(graph: Graph) -> dict[str, set[str]]:
    rooms: dict[str, set[str]] = {}
    for module, targets in graph.items():
        rooms.setdefault(room(module), set()).update({room(target) for target in targets} - {room(module)})
    return rooms


@pytest.fixture(scope="module")
def graph() -> Graph:
    known = modules()
    return {name: imported(path.read_text(), known) for name, path in known.items()}


def test_every_module_has_a_room(graph):
    assert {room(module) for module in graph} <= LEVEL.keys()


def test_imports_follow_the_arrows(graph):
    assert against_the_arrows(graph) == set(EXCEPTIONS)


def test_there_are_no_circles(graph):
    assert not circle(graph) and not circle(of_rooms(graph))


def test_the_checks_see_what_they_are_for(graph):
    source = """
from typing import TYPE_CHECKING
from scaling.model import decoder
from scaling.config import schema as cfg
if TYPE_CHECKING:
    from scaling.evaluate.task import Task
def f():
    import launch.jobs
    from scaling.train.loop import Loop
"""
    found = imported(source, modules())
    assert found == {"scaling.model.decoder", "scaling.config.schema", "launch.jobs", "scaling.train.loop"}
    wrong = {**graph, "scaling.runs.paths": graph["scaling.runs.paths"] | found}
    assert against_the_arrows(wrong) == {
        ("scaling.runs.paths", "launch.jobs"),
        ("scaling.runs.paths", "scaling.train.loop"),
        *EXCEPTIONS,
    }
    assert {"runs", "train"} <= set(circle(of_rooms({**graph, "scaling.runs.paths": {"scaling.train.loop"}})))
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})
