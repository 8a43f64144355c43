"""Rows of `scaling status`, names and prices, and `scaling stop`, on folders made by hand."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from etils import epath

from launch import bill, jobs, state, status
from launch.find import find
from scaling import cli
from scaling.config import schema as cfg
from scaling.config.files import load
from scaling.runs.lock import held
from scaling.sweep.runner import write_plan
from tests.experiments import SHAPES, experiment


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    """A run in runs/one: 4 of 10 steps, a checkpoint at 3."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    config = cfg.Config(
        workdir=str(folder),
        model=cfg.Model(context_length=32),
        train=cfg.Train(
            tokens=1280, batch_tokens=128, sequence_length=32, microbatch_sequences=4, ramp_start_tokens=128
        ),
    )
    (folder / "plan.json").write_text(cfg.to_json(config))
    lines = [
        {"step": i, "tokens": 128 * i, "loss": 5.0 - i, "tokens_per_second": 1234.5, "mfu": 0.25} for i in range(1, 5)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "checkpoints/000000003").mkdir(parents=True)
    (folder / "checkpoints/000000003/meta.json").write_text("{}")
    (folder / "attempts").mkdir()
    seconds = {"startup": 1.0, "compile": 1.0, "steps": 6.0}
    attempt = {"number": 1, "hostname": "h", "pid": 1, "started": 100.0, "first_step": 0, "step": 4, "seconds": seconds}
    (folder / "attempts/001.json").write_text(json.dumps(attempt))
    return folder


def row(name="one"):
    return status.rows(find([name])[0])[0]


def test_a_row_tells_all_that_the_files_tell(run_dir):
    found = row()
    assert (found.step, found.steps, found.loss, found.checkpoint) == (4, 10, 1.0, 3)
    assert (found.tokens_per_second, found.mfu, found.goodput) == (1234.5, 0.25, 0.75)
    assert (found.state, found.restarts) == ("stopped", 0)
    text = status.to_text([found]).splitlines()
    assert text[0].split() == ["run", "where", "state", "step", "loss", "tokens/s", "MFU", "checkpoint", "restarts",
                               "goodput"]  # fmt: skip
    assert text[1].split() == ["one", "local", "stopped", "4/10", "1.0000", "1,234", "25.0%", "3", "0", "75.0%"]


def test_where_the_time_went(run_dir, capsys):
    """Of the second attempt's start on, a step is done again; half a second lay between the two."""
    first = json.loads((run_dir / "attempts/001.json").read_text()) | {"save_stalls": [0.02], "step_seconds": 0.5}
    (run_dir / "attempts/001.json").write_text(json.dumps(first))
    second = first | {"number": 2, "started": 108.5, "first_step": 3, "step": 5, "seconds": {"save": 0.5, "steps": 3.0}}
    (run_dir / "attempts/002.json").write_text(json.dumps(second))
    assert cli.main(["status", "one", "--time"]) == 0
    heads, cells = (line.split() for line in capsys.readouterr().out.splitlines())
    assert heads == ["run", "seconds", "steps", "startup", "restore", "compile", "validate", "save", "skipped", "lost",
                     "down", "lost_steps", "save_stall"]  # fmt: skip
    assert cells[:2] == ["one", "12"]
    shares = dict(zip(heads[2:11], cells[2:11], strict=True))
    assert shares == {"steps": "62.5%", "startup": "8.3%", "restore": "0.0%", "compile": "8.3%", "validate": "0.0%",
                      "save": "4.2%", "skipped": "0.0%", "lost": "12.5%", "down": "4.2%"}  # fmt: skip
    assert cells[11:] == ["1", "0.020", "s,", "4%", "of", "a", "step"]
    assert cli.main(["status", "one", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["seconds"]["lost"] == 1.5 and found["lost_steps"] == 1 and found["save_stall_share"] == 0.04


def test_states(run_dir):
    dead = {"pid": 2**22 + 1, "start": "x", "host": state.identity(os.getpid())["host"]}
    state.write(run_dir, {"state": "running", "supervisor": dead, "restarts": {"total": 2, "preemptions": 1}})
    assert row().state == "dead" and (row().restarts, row().preemptions) == (2, 1)
    assert "2 (1 preempted)" in status.to_text([row()])
    state.write(run_dir, {"state": "running", "supervisor": dead | {"host": "elsewhere"}})
    assert row().state == "elsewhere"
    with held(epath.Path(run_dir) / ".lock", ""):
        assert row().state == "running"  # by `scaling train` alone
    with held(epath.Path(run_dir) / state.LOCK, ""):
        assert row().state == "running"
        state.write(run_dir, {"state": "waiting", "supervisor": dead})
        assert row().state == "restarting"
    (run_dir / "evals.jsonl").write_text('{"step": 10, "tokens": 1280, "loss": 2.5}\n')
    assert row().state == "finished"
    state.write(run_dir, {"state": "failed", "supervisor": dead})
    (run_dir / "evals.jsonl").unlink()
    assert row().state == "failed"


def test_a_sweep_shows_runs_that_have_not_begun(run_dir, capsys):
    state.write(run_dir.parent, {"target": "local", "runs": ["one", "two"], "state": "running"})
    assert [(r.run, r.state) for r in status.rows(find(["runs"])[0])] == [("one", "stopped"), ("two", "waiting")]
    assert cli.main(["status", "--json"]) == 0
    assert [one["run"] for one in json.loads(capsys.readouterr().out)] == ["one"]
    assert cli.main(["status", "nowhere"]) == 2
    assert "runs/nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("runs", ["", f"{SHAPES}, [tokens(4096)]"])
def test_a_launch_and_its_runs_agree_on_a_folder_at_home(tmp_path, monkeypatch, runs):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "tiny.py").write_text(experiment("~/mine", runs, train__batch_tokens=1024, train__tokens=4096))
    launch = jobs.read("tiny.py", [], local=True)
    assert launch.state_folder == epath.Path(tmp_path / "home/mine")
    folders = {launch.state_folder if runs else launch.state_folder.parent}
    assert {epath.Path(run.config.workdir).parent for run in launch.runs} == folders
    plan = write_plan(launch.runs[0], epath.Path(launch.runs[0].config.workdir))
    assert load(str(plan)).workdir == launch.runs[0].config.workdir  # as the supervisor and the training read it


@pytest.mark.parametrize("verb", ["status", "stop"])
def test_what_this_program_wrote_beside_the_runs_is_passed_over(run_dir, capsys, verb):
    """As ``runs/*`` names it: a launcher's files, and a report under any name."""
    runs = run_dir.parent
    for name in ("launch.json", "launch.log", "scaling-ab12cd.tar.gz"):
        (runs / name).write_text("{}")
    (runs / "my report/figures").mkdir(parents=True)
    (runs / "my report/points.csv").write_text("")
    everything = [str(path) for path in sorted(runs.iterdir())]
    assert len(everything) == 5 and cli.main([verb, *everything]) == 0
    assert "one" in capsys.readouterr().out
    own = [path for path in everything if path != str(run_dir)]
    assert cli.main([verb, *own]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert cli.main([verb, *everything, str(runs / "two")]) == 2  # mistyped


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ("[]", "a list"),
        ('{"jobs": 3}', "'jobs' is 3"),
        ('{"jobs": {"a": 3}}', "'jobs'"),
        ('{"jobs": {"a": {"name": "a", "state": "running"}}}', "jobs.a.workdir"),
        ('{"runs": 3}', "'runs'"),
        ('{"target": "tpu_vm", "id": "x", "jobs": {}, "slots": []}', "cloud"),
        ('{"supervisor": {"pid": 1}}', "start of a process"),
        ('{"children": [1]}', "'children'"),
    ],
)
@pytest.mark.parametrize("verb", ["status", "stop"])
def test_a_launch_json_that_no_launcher_wrote_is_refused_with_its_path(run_dir, capsys, verb, written, named):
    (run_dir.parent / state.FILE).write_text(written)
    assert cli.main([verb, "runs"]) == 2
    said = capsys.readouterr().err
    assert "runs/launch.json" in said and named in said and said.count("\n") == 1
    state.write(run_dir, {"state": "running"})  # without a supervisor
    assert row().state == "dead"


def test_nan_is_null_in_json(run_dir, capsys):
    (run_dir / "metrics.jsonl").write_text('{"step": 1, "tokens": 128, "loss": NaN}\n')
    assert cli.main(["status", "one", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["loss"] is None


def test_stop_ends_a_supervisor_and_what_one_left_behind(run_dir, capsys):
    program = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); time.sleep(60)"
    processes = [subprocess.Popen([sys.executable, "-c", program], start_new_session=True) for _ in range(2)]
    time.sleep(0.5)
    try:
        supervisor, child = (state.identity(process.pid) for process in processes)
        state.write(run_dir, {"target": "local", "state": "running", "supervisor": supervisor, "children": [child]})
        assert cli.main(["stop", "one", "--grace_seconds=5"]) == 0
        assert [process.wait(5) for process in processes] == [143, 143]
        assert "nothing runs, nothing is held" in capsys.readouterr().out
    finally:
        for process in processes:
            process.kill()


def test_stop_kills_what_stands_still(run_dir):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    os.kill(process.pid, signal.SIGSTOP)
    while not state.stopped(process.pid):
        time.sleep(0.01)
    state.write(run_dir, {"target": "local", "state": "running", "children": [state.identity(process.pid)]})
    assert cli.main(["stop", "one", "--grace_seconds=0.2"]) == 0
    assert process.wait(5) == -signal.SIGKILL


@pytest.mark.parametrize("name", ["", ".", "..", "-x", "a/b", "a b", "a;b", "$(x)", "a\nb", "x" * 129, "é"])
def test_names_that_could_be_something_else_are_refused(name):
    with pytest.raises(ValueError, match="name a run"):
        jobs.check_name(name)


@pytest.mark.parametrize(
    "name", ["125m", "l2-d32-t20k-peak_lr0.001-seed2", "A.b_c+d=e", "-" * 3 + "x", "é" * 50, "x" * 99]
)
def test_labels_are_what_clouds_take(name):
    import re

    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", jobs.label(name))


def test_labels_tell_names_apart():
    names = ["a_b", "a-b", "a.b", "A-b", "x" * 50, "x" * 51]
    assert len({jobs.label(name) for name in names}) == len(names)
    assert jobs.label("a-b") == "a-b"


def test_prices_are_read_or_refused(tmp_path):
    path = Path(tmp_path / "prices.toml")
    path.write_text("\ufeffv5e = 1.2\nH100 = -1\n[spot]\nv5e = 0.6\n")
    assert bill.price(path, "v5e", spot=False) == 1.2 and bill.price(path, "v5e", spot=True) == 0.6
    assert bill.price(path, "v6e", spot=False) is None
    with pytest.raises(ValueError, match="H100 = -1 "):
        bill.price(path, "H100", spot=False)
    for text, said in (("v5e: 1.2", "TOML"), ("spot = 3", "spot.* table")):
        path.write_text(text)
        with pytest.raises(ValueError, match=said):
            bill.price(path, "v5e", spot=True)


def test_a_chip_without_a_price_is_named_with_the_file(tmp_path):
    line = bill.Line("run", tokens=1000, hours=2.0, fits=True)
    known = bill.Bill((line,), "1 x v5e:2x4", "v5e", 8, True, 0.5)
    unknown = dataclasses.replace(known, price=None, prices=tmp_path / "prices.toml")
    assert "cost" in known.to_text(1) and "8.00 at 0.5" in known.to_text(1)
    assert f"{tmp_path / 'prices.toml'} has no v5e in [spot]" in unknown.to_text(1)
    assert "--prices=FILE" in dataclasses.replace(unknown, prices=None).to_text(1)


def test_options_of_another_target_are_refused(capsys):
    for options, said in (
        (["--target=local", "--zone=z"], "--zone belongs to --target=tpu_vm"),
        (["--target=gke", "--processes=2"], "--processes belongs to --target=local"),
        (["--target=local"], "needs --config=FILE"),
        (["--target=mars"], "invalid choice"),
        (["--target=local", "--config="], "needs --config=FILE"),
        (["--target=local", "--max_restarts=-1"], "must be a number of at least 0"),
        (["--target=skypilot", "--accelerators=H100:8", "--nodes=0"], "--nodes=0 must be at least 1"),
    ):
        assert cli.main(["launch", *options]) == 2
        assert said in capsys.readouterr().err
