"""Steps: what is done is not done again, what is lost is made again, and two builds do not write at the same time."""

import fcntl
import functools

import pytest

from scaling.corpus import steps
from scaling.corpus.engine import Engine
from scaling.corpus.steps import Steps, Task


def made(tmp_path, *tasks):
    """Runs tasks that write files; which of them ran, and the results."""
    ran = []

    def work(name, path, files):
        ran.append(name)
        path.write_text("new")
        return {"files": files, "of": name}

    def run():
        ran.clear()
        calls = [
            Task(name, functools.partial(work, name, path, files), () if files else (path,))
            for name, path, files in tasks
        ]
        step.begin({"knob": 1})
        return list(ran), step.run("work", calls), list(ran)

    step = Steps(tmp_path / "stages/01-x", Engine("native", 1), lambda *_: None)
    return run


def test_a_task_is_done_if_its_result_and_its_files_are_there(tmp_path):
    folder = tmp_path / "stages/01-x"
    run = made(tmp_path, ("a", folder / "a.bin", []), ("b", folder / "b.bin", ["b.bin"]))
    assert run()[2] == ["a", "b"] and run()[2] == []
    (folder / "a.bin").unlink()
    assert run()[2] == ["a"]
    (folder / "b.bin").unlink()
    assert run()[2] == ["b"]
    (folder / "b.json").write_text("{")
    assert run()[2] == ["b"]
    assert run()[1] == [{"files": [], "of": "a"}, {"files": ["b.bin"], "of": "b"}]


def test_a_task_of_other_input_is_done_again(tmp_path):
    step, ran = Steps(tmp_path / "stages/01-x", Engine("native", 1), lambda *_: None), []
    for made_of in ("one", "one", "two", "one"):
        step.begin({})
        step.run("work", [Task("a", lambda made_of=made_of: ran.append(made_of) or {}, made_of=made_of)])
    assert ran == ["one", "two", "one"] and step.result("a") == {}


def test_a_build_waits_for_the_tasks_of_another_one(tmp_path, monkeypatch):
    run = made(tmp_path)
    run()
    monkeypatch.setattr(steps, "_PATIENCE", 0.2)
    with (tmp_path / "stages/.tasks.lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        with pytest.raises(ValueError, match="tasks of an earlier build still write into"):
            run()
    run()
