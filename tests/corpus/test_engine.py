"""Tasks on processes: results, and the errors of users and of code."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from scaling.corpus.engine import Engine
from tests.programs import environment

PROGRAM = """
import os
import time
from scaling.corpus.engine import Engine

def work(item):
    if item == "user":
        raise ValueError("mine.jsonl:3: not a record")
    if item == "system":
        open("/nowhere/at/all")
    if item == "bug":
        raise KeyError("x")
    time.sleep(0.3)
    return item, os.getpid()

if __name__ == "__main__":
    found = sorted(Engine("native", 2).each(work, list(range(9))))
    assert [item for item, _ in found] == list(range(9)), found
    assert len({pid for _, pid in found} - {os.getpid()}) == 2, found
    for item, kind, words in (
        ("user", ValueError, "mine.jsonl:3"),
        ("system", FileNotFoundError, "/nowhere"),
        ("bug", RuntimeError, "KeyError"),
    ):
        try:
            list(Engine("native", 2).each(work, [item, 1]))
        except kind as error:
            assert words in str(error), error
        else:
            raise AssertionError(item)
"""


ORPHANS = """
import functools
import os
import sys
import time
from pathlib import Path
from scaling.corpus.engine import Engine

def work(folder, item):
    (folder / f"{os.getpid()}.pid").touch()
    time.sleep(300)

def die(item):
    if item:
        os._exit(9)
    return item

if __name__ == "__main__":
    try:
        list(Engine("native", 2).each(die, [0, 0, 1, 0]))
    except OSError as error:
        assert "a worker process of the build was killed" in str(error), error
    else:
        raise AssertionError
    list(Engine("native", 2).each(functools.partial(work, Path(sys.argv[1])), [1, 2]))
"""


@pytest.mark.slow
def test_workers_end_with_their_parent_and_a_killed_one_is_a_sentence(tmp_path):
    (tmp_path / "program.py").write_text(ORPHANS)
    arguments = [sys.executable, tmp_path / "program.py", tmp_path]
    with subprocess.Popen(arguments, env=environment(), stderr=subprocess.DEVNULL) as program:
        until(lambda: len([*tmp_path.glob("*.pid")]) == 2 or program.poll() is not None)
        assert program.poll() is None, "the first half failed"
        program.kill()
    workers = [int(path.stem) for path in tmp_path.glob("*.pid")]
    until(lambda: not any(map(alive, workers)))


def alive(process):
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def until(true):
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_an_iteration_that_ends_early_is_an_interruption(monkeypatch):
    monkeypatch.setattr(Engine, "_by_daft", lambda *_: iter(['{"result": 1}']))
    with pytest.raises(KeyboardInterrupt):
        list(Engine("native", 2).each(print, [1, 2]))


@pytest.mark.slow
def test_results_and_errors_come_back_from_processes(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    subprocess.run([sys.executable, tmp_path / "program.py"], check=True, env=environment(), timeout=300)


@pytest.mark.parametrize(
    ("kind", "workers", "said"), [("nativ", 0, "native or ray, not 'nativ'"), ("native", -2, "config.workers=-2")]
)
def test_wrong_knobs_are_refused(kind, workers, said):
    with pytest.raises(ValueError, match=said):
        Engine(kind, workers)


def test_one_worker_is_this_process():
    assert list(Engine("native", 1).each(lambda item: item + 1, [1, 2])) == [2, 3]
