"""The supervisor of a run, on stand-ins for ``scaling train`` that die, hang, stand still and make progress."""

import json
import os
import pwd
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from etils import epath

from launch import jobs, processes, progress, restarts, state, supervisor
from launch.settings import Settings
from launch.supervisor import Supervisor
from scaling import exit_codes

ROOT = Path(__file__).resolve().parents[2]

# A run: reads its part from behaviour.json, [code or action of start 1, of start 2, ...], the last for all later ones.
PROGRAM = """
import json, os, pathlib, signal, sys, time
folder, index = pathlib.Path(sys.argv[1]), int(sys.argv[2])
starts = folder / f"starts-{index}"
number = int(starts.read_text()) + 1 if starts.exists() else 1
starts.write_text(str(number))
plans = json.loads((folder / "behaviour.json").read_text())[index]
what = plans[min(number, len(plans)) - 1]
if isinstance(what, list):  # [step to log, what to do then]
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": what[0], "loss": 1.0}) + "\\n")
    what = what[1]
if what == "hang":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
elif what == "serve":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    (folder / "serving").write_text(str(os.getpid()))
    time.sleep(600)
elif what == "freeze":
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(600)
elif what < 0:
    os.kill(os.getpid(), -what)
sys.exit(what)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Supervises processes that behave as given, in this process; returns (code, state, starts of process 0)."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    monkeypatch.setattr(
        jobs, "command", lambda plan, d: [sys.executable, str(program), str(tmp_path), str(d.get("process_id", 0))]
    )
    monkeypatch.setattr(supervisor, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(supervisor, "_STOPPED_SECONDS", 0.5)
    monkeypatch.setattr(supervisor, "_LINGER_SECONDS", 0.3)

    def run(*behaviour, **chosen):
        (tmp_path / "behaviour.json").write_text(json.dumps(behaviour))
        values = dict(processes=len(behaviour), grace_seconds=0.5, first_delay=0.01) | chosen
        code = Supervisor("plan.json", epath.Path(tmp_path), Settings(**values)).run()
        return code, state.read(tmp_path), int((tmp_path / "starts-0").read_text())

    return run


def test_a_run_that_finishes_is_started_once(run):
    code, values, starts = run([0])
    assert (code, values["state"], starts) == (0, "finished", 1)
    assert values["children"] == [] and values["exit_code"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "first", [-9, -11, 143, -15, exit_codes.IO, exit_codes.HUNG, exit_codes.FAULTY, exit_codes.BUG]
)
def test_it_is_started_again_after(run, first):
    code, values, starts = run([first, 0])
    assert (code, values["state"], starts) == (0, "finished", 2)
    assert values["restarts"]["total"] == 1
    assert values["restarts"]["preemptions"] == (first in (143, -15))
    assert any(event.get("code") == first for event in values["events"])


@pytest.mark.parametrize("code", [exit_codes.USAGE, exit_codes.DIVERGED])
def test_it_is_never_started_again_after(run, code):
    assert run([code, 0])[::2] == (code, 1)


def test_starts_without_progress_are_limited(run):
    code, values, starts = run([-9], max_restarts=3)
    assert (code, values["state"], starts) == (exit_codes.BUG, "failed", 4)
    code, _, starts = run([exit_codes.BUG])
    assert starts - 4 == 3  # exceptions come again


def test_progress_counts_anew(run):
    code, values, starts = run([[1, -9], [2, -9], [2, -9], [3, -9], [3, 0]], max_restarts=2)
    assert (code, starts, values["restarts"]["step"]) == (0, 5, 3)


def test_a_disk_that_failed_gets_minutes():
    counts = restarts.Restarts(most=5, first_delay=1.0)
    waited = []
    while counts.after(exit_codes.IO) == restarts.RESTART:
        waited.append(counts.delay)
    assert waited == [30, 60, 120, 240, 300]
    counts.saw(1)
    assert counts.after(exit_codes.HUNG) == restarts.RESTART and counts.delay == 1


def test_delays_grow_without_progress_and_end_with_it():
    counts = restarts.Restarts(most=20, first_delay=1.0, longest_delay=10.0)
    seen = []
    for _ in range(6):
        assert counts.after(-9) == restarts.RESTART
        seen.append(counts.delay)
    assert seen == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    counts.saw(7)
    counts.after(-9)
    assert counts.delay == 1.0
    counts.saw(7)  # the same step once more is none
    assert counts.in_vain == 1


def test_one_dead_process_takes_the_others_along(run, tmp_path):
    started = time.monotonic()
    code, values, starts = run([-9, 0], ["hang", 0])
    assert (code, starts, int((tmp_path / "starts-1").read_text())) == (0, 2, 2)
    assert values["restarts"]["total"] == 1
    assert time.monotonic() - started < 10


def test_a_process_that_stands_still_is_noticed(run, tmp_path):
    code, values, _ = run(["serve", 0], ["freeze", 0])
    assert code == 0
    assert any("has been stopped for" in event["event"] for event in values["events"])
    assert int((tmp_path / "starts-1").read_text()) == 2


def test_a_run_whose_files_do_not_change_is_killed(run):
    code, values, starts = run(["hang", 0], stall_seconds=0.6)
    assert (code, starts) == (0, 2)
    assert any("no file of the run changed" in event["event"] for event in values["events"])


def test_a_full_disk_does_not_end_the_supervisor(run, tmp_path, monkeypatch):
    """Code 74 is to be followed by another start, also where there is no room for launch.json."""

    def full(folder, values):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state, "write", full)
    assert run([exit_codes.IO, exit_codes.IO, 0])[::2] == (0, 3)
    assert not (tmp_path / "launch.json").exists()


def test_a_log_that_cannot_be_made_is_tried_again_and_leaves_no_process(run, tmp_path, monkeypatch):
    (tmp_path / "train-1.log").mkdir()
    started, real = [], processes.Child

    def child(*given):
        started.append(real(*given))
        return started[-1]

    monkeypatch.setattr(processes, "Child", child)
    (tmp_path / "starts-0").write_text("0")
    code, values, _ = run(["hang"], ["hang"], max_restarts=1)
    assert code == exit_codes.IO and values["state"] == "failed"
    assert len(started) == 2 and not any(one.running for one in started)


@pytest.mark.parametrize("name", ["max_restarts", "stall_seconds", "grace_seconds", "first_delay"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_impossible_numbers_are_refused(name, value):
    with pytest.raises(ValueError, match=f"--{name}="):
        Settings(**{name: value})


def test_the_most_telling_code_counts():
    assert restarts.of_group([-6, exit_codes.DIVERGED]) == exit_codes.DIVERGED
    assert restarts.of_group([-9, 1]) == -9
    assert restarts.of_group([0, 143]) == 143
    assert restarts.of_group([0, 0]) == 0


def until(test, seconds=100):
    end = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


@pytest.fixture
def outside(tmp_path):
    """Starts a supervisor as a process of its own."""
    (tmp_path / "program.py").write_text(PROGRAM)
    script = textwrap.dedent(f"""
        import sys
        from etils import epath
        from launch import jobs, supervisor
        from launch.settings import Settings
        from launch.supervisor import Supervisor
        jobs.command = lambda plan, d: [sys.executable, {str(tmp_path / "program.py")!r}, {str(tmp_path)!r}, "0"]
        chosen = Settings(grace_seconds=5, first_delay=0.01)
        sys.exit(Supervisor("plan.json", epath.Path({str(tmp_path)!r}), chosen).run())
    """)
    started = []

    def start(*behaviour):
        (tmp_path / "behaviour.json").write_text(json.dumps([list(behaviour)]))
        started.append(subprocess.Popen([sys.executable, "-c", script], cwd=ROOT))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
    for child in state.read(tmp_path).get("children", []):
        if state.alive(child):
            os.kill(child["pid"], signal.SIGKILL)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_signals_are_passed_on_and_no_start_follows(outside, tmp_path, number, code):
    process = outside("serve")
    until((tmp_path / "serving").exists)
    process.send_signal(number)
    assert process.wait(100) == code
    assert state.read(tmp_path)["state"] == "stopped"
    assert (tmp_path / "starts-0").read_text() == "1"


def test_killed_and_started_again_it_goes_on_with_the_same_process(outside, tmp_path):
    first = outside("serve", 0)
    until((tmp_path / "serving").exists)
    until(lambda: state.read(tmp_path)["state"] == "running")
    first.kill()
    first.wait()
    child = int((tmp_path / "serving").read_text())
    second = outside("serve", 0)
    until(lambda: any("still run" in event["event"] for event in state.read(tmp_path)["events"]))
    assert (tmp_path / "starts-0").read_text() == "1"
    assert state.read(tmp_path)["children"][0]["pid"] == child
    os.kill(child, signal.SIGKILL)  # its code is not for us to see: one more start tells
    assert second.wait(100) == 0
    assert (tmp_path / "starts-0").read_text() == "2"


@pytest.mark.slow
def test_killed_before_it_could_note_what_it_started_nothing_runs(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "behaviour.json").write_text("[[0]]")
    script = textwrap.dedent(f"""
        import os, pathlib, sys
        from launch import processes
        folder = pathlib.Path({str(tmp_path)!r})
        command = [sys.executable, str(folder / "program.py"), str(folder), "0"]
        children, gate = processes.start([command], [folder / "log"], [os.environ])
        (folder / "pid").write_text(str(children[0].identity["pid"]))
        if sys.argv[1] == "note":
            gate.open()
            children[0].process.wait()
    """)
    for what, starts in (("die", False), ("note", True)):
        subprocess.run([sys.executable, "-c", script, what], cwd=ROOT, check=True)
        until(lambda: not state.started(int((tmp_path / "pid").read_text())))
        assert (tmp_path / "starts-0").exists() == starts, (tmp_path / "log").read_text()


def test_a_number_given_anew_is_another_process():
    mine = state.identity(os.getpid())
    assert state.alive(mine)
    assert not state.alive(mine | {"start": "earlier"})
    assert not state.alive(mine | {"host": "elsewhere"})
    assert not state.alive(None)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    identity = state.identity(gone.pid)
    gone.wait()
    assert not state.alive(identity)


def test_the_state_is_whole_or_refused(tmp_path):
    assert state.read(tmp_path) == {}
    state.write(tmp_path, {"state": "running"})
    assert state.read(tmp_path) == {"state": "running"}
    assert [path.name for path in tmp_path.iterdir()] == ["launch.json"]
    (tmp_path / "launch.json").write_text('{"state": ')
    with pytest.raises(ValueError, match=r"launch\.json.* damaged"):
        state.read(tmp_path)


def test_steps_are_read_from_lines_and_checkpoints(tmp_path):
    folder = epath.Path(tmp_path)
    assert progress.newest_step(folder) == -1
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "loss": 1.0}\n{"step": 4, "lo')
    assert progress.newest_step(folder) == 3
    for step, whole in ((10, True), (20, False)):
        (tmp_path / f"checkpoints/{step:09d}").mkdir(parents=True)
        if whole:
            (tmp_path / f"checkpoints/{step:09d}/meta.json").write_text("{}")
    assert progress.newest_step(folder) == 10


def test_files_of_an_owner_whom_this_machine_does_not_know_are_watched(tmp_path, monkeypatch):
    """A container with a number for a user, a folder that machines share."""
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    log, now = tmp_path / "train.log", 100.0
    log.write_text("a")
    heartbeat = progress.Heartbeat(epath.Path(tmp_path))
    heartbeat.silence()
    now = 110.0
    assert heartbeat.silence() == 10
    log.write_text("ab")
    assert heartbeat.silence() == 0


def test_gpus_are_shared_out():
    given = {"CUDA_VISIBLE_DEVICES": "4,5,6,7", "A": "b"}
    assert [e["CUDA_VISIBLE_DEVICES"] for e in processes.environments(2, given)] == ["4,5", "6,7"]
    assert processes.environments(2, {"A": "b"}) == [{"A": "b"}, {"A": "b"}]
    with pytest.raises(ValueError, match="4 GPUs"):
        processes.environments(3, given)
