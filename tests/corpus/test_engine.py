"""Tasks on processes: results, and the errors of users and of code."""

import subprocess
import sys

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
