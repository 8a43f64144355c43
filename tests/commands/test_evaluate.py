"""`scaling evaluate` prints what it has computed, checks beforehand where it writes, and takes a folder of runs."""

import errno
import json
from types import SimpleNamespace

import pytest

from scaling import cli, exit_codes
from scaling.commands import evaluate as command
from scaling.evaluate.scoring import records
from scaling.evaluate.scoring.records import Result, Sample
from scaling.runs import own_files


def result(task: str) -> Result:
    sample = Sample("test/0", "a", "b", "b", {"accuracy": 1.0}, (-1.0,))
    return Result(task, "group", 0, {"accuracy": (0.625, 0.1)}, 8, 0.5, (sample,), (), 0.0)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two runs, a report and a launcher's file; models that need no loading, and tasks that are done at once."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"config": {}}')
    (tmp_path / "report" / "figures").mkdir(parents=True)
    (tmp_path / "report" / "points.csv").write_text("")
    (tmp_path / "launch.json").write_text("{}")
    loaded = []

    def load(model, *_, **__):
        loaded.append(model)
        return SimpleNamespace(step=3, tokens=30)

    monkeypatch.setattr("scaling.interop.served.load_decoder", load)
    monkeypatch.setattr(command, "_own", lambda options: lambda served: map(result, ("one", "two")))
    return SimpleNamespace(folder=tmp_path, loaded=loaded, all=sorted(map(str, tmp_path.iterdir())))


def evaluate(*arguments):
    return cli.main(["evaluate", *map(str, arguments), "--tasks=x"])


def test_what_stands_beside_the_runs_is_passed_over(runs, capsys):
    assert evaluate(*runs.all, "--save_samples") == 0
    assert runs.loaded == [str(runs.folder / name) for name in "ab"]
    assert capsys.readouterr().out.count("0.625") == 10  # two tasks and their mean, of two runs; and two side by side
    for name in "ab":
        lines = [json.loads(line) for line in (runs.folder / name / "evals.jsonl").read_text().splitlines()]
        assert [(line["step"], line["task"]) for line in lines] == [(3, "one"), (3, "two")]
        assert (runs.folder / name / "samples" / "one-0.jsonl").exists()
        assert {path.name for path in (runs.folder / name).rglob("*.jsonl")} == {
            "evals.jsonl",
            "one-0.jsonl",
            "two-0.jsonl",
        }


def test_scores_in_8_bits_are_no_scores_of_the_step(runs, capsys):
    assert evaluate(runs.folder / "a", "--int8=both") == 0
    assert "a, both in 8 bits" in capsys.readouterr().out and not (runs.folder / "a" / "evals.jsonl").exists()


@pytest.mark.parametrize("wrong", ["repotr", "reports", "launch.jsn", "empty"])
def test_a_mistyped_path_is_refused(wrong, runs, capsys):
    (runs.folder / "empty").mkdir()
    assert evaluate(*runs.all, runs.folder / wrong) == exit_codes.USAGE
    assert wrong in capsys.readouterr().err and not runs.loaded


def test_where_no_run_is_left_it_is_said(runs, capsys):
    assert evaluate(runs.folder / "report", runs.folder / "launch.json") == exit_codes.USAGE
    assert "no run" in capsys.readouterr().err


def test_only_what_was_written_here_is_passed_over(runs):
    assert [own_files.is_own(path) for path in runs.all] == [False, False, True, True]
    (runs.folder / "report" / "config.json").write_text('{"config": {}}')  # a run of that name
    assert not own_files.is_own(runs.folder / "report")


@pytest.mark.parametrize("place", ["evals.jsonl", "samples"])
def test_a_run_that_cannot_be_written_to_is_told_beforehand(place, runs, capsys):
    if place == "samples":
        (runs.folder / "b" / place).write_text("a file where a folder must be")
    else:
        (runs.folder / "b" / place).mkdir()
    assert evaluate(*runs.all, "--save_samples") == exit_codes.USAGE
    assert place in capsys.readouterr().err and not runs.loaded
    assert not (runs.folder / "a" / "evals.jsonl").exists()


@pytest.mark.parametrize("option", ["--json", "--save_samples"])
def test_scores_are_printed_though_the_disk_is_full(option, runs, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")  # as of a write: without the name of the file

    monkeypatch.setattr(records, "append", full)
    assert evaluate(runs.folder / "a", runs.folder / "b", option) == exit_codes.IO
    out, err = capsys.readouterr()
    assert len(runs.loaded) == 2 and out.count("0.625") == (4 if option == "--json" else 10) and "evals.jsonl" in err


def test_scores_are_printed_though_a_later_task_fails(runs, monkeypatch, capsys):
    def fails(served):
        yield result("one")
        raise ValueError("items.jsonl:3: the second task is damaged")

    monkeypatch.setattr(command, "_own", lambda options: fails)
    assert evaluate(runs.folder / "a") == exit_codes.USAGE
    out, err = capsys.readouterr()
    assert "0.625" in out and "items.jsonl:3" in err
