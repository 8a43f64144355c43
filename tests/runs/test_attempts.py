"""Goodput: the writer's clock, the reader's sums, exit codes, hashes of batches."""

import errno
import json
import time

import numpy as np
import pytest
from etils import epath

from scaling import exit_codes
from scaling.data.batch import of_sequences
from scaling.runs import attempts
from scaling.train.batch_hash import BatchHashes
from scaling.train.reliability.goodput import Goodput


def attempt(number, first_step, step, started, steps, **seconds):
    seconds = dict.fromkeys(attempts.KINDS, 0.0) | {"steps": steps} | seconds
    return attempts.Attempt(number, "host", 1, started, first_step, step, seconds)


def test_goodput_over_attempts_leaves_lost_steps_and_down_time_out():
    runs = [
        attempt(1, 0, 30, 1000.0, steps=60.0, startup=10.0),  # killed at 1070; steps 21 to 30 are done again
        attempt(2, 20, 50, 1080.0, steps=30.0, startup=5.0, save=5.0),  # 10 seconds later; then 40 to 50 again
        attempt(3, 40, 60, 1120.0, steps=20.0),
    ]
    assert attempts.kept_steps(runs) == [20, 20, 20]
    found = attempts.summarize(runs)
    assert found.attempts == 3 and found.lost_steps == 20 and found.wall_seconds == 140
    assert found.seconds["lost"] == pytest.approx(20 + 10) and found.seconds["down"] == pytest.approx(10)
    assert found.seconds["steps"] == pytest.approx(40 + 20 + 20) and sum(found.seconds.values()) == pytest.approx(140)
    assert found.goodput == pytest.approx(80 / 140)


def test_an_attempt_that_falls_behind_the_one_before_loses_its_steps_too():
    runs = [attempt(1, 0, 30, 0.0, 30.0), attempt(2, 20, 40, 30.0, 20.0), attempt(3, 10, 50, 50.0, 40.0)]
    assert attempts.kept_steps(runs) == [10, 0, 40]  # step 20's checkpoint was damaged
    assert attempts.summarize(runs).lost_steps == 40


def test_a_clock_that_was_set_back_makes_no_goodput_above_one():
    runs = [attempt(1, 0, 30, 1000.0, steps=50.0, startup=10.0), attempt(2, 30, 60, 500.0, steps=60.0)]
    found = attempts.summarize(runs)
    assert found.wall_seconds == sum(found.seconds.values()) == 120 and found.seconds["down"] == 0
    assert found.goodput == pytest.approx(110 / 120)


def test_a_roll_back_to_before_the_attempt_loses_no_negative_steps():
    assert attempts.summarize([attempt(1, 0, 50, 0.0, 50.0), attempt(2, 50, 41, 50.0, 9.0)]).lost_steps == 0


def test_steps_without_a_logged_line_are_a_sign_of_life(tmp_path, monkeypatch):
    """A launcher that waits for a change takes a run that logs seldom for hung."""
    monkeypatch.setattr("scaling.train.reliability.goodput._ALIVE_SECONDS", 0.0)
    with Goodput(epath.Path(tmp_path), time.time()) as clock:
        clock.begin(3)
        clock.stepped(5)
        (found,) = attempts.read(tmp_path)
        assert (found.first_step, found.step) == (3, 5) and found.seconds["startup"] > 0
        monkeypatch.setattr("scaling.train.reliability.goodput._ALIVE_SECONDS", 60.0)
        clock.stepped(6)
        assert attempts.read(tmp_path)[0].step == 5


class Steps:
    """A writer whose steps take a second each of a clock of its own."""

    def __init__(self, run_dir, first_step, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr("scaling.train.reliability.goodput.time.monotonic", lambda: self.now)
        self.clock = Goodput(epath.Path(run_dir), 1000.0)
        self.clock.begin(first_step)
        self.clock._enter("steps")

    def do(self, first, last, bad=()):
        for step in range(first, last + 1):
            self.now += 1.0
            self.clock.stepped(step)
            if step in bad:
                self.clock.discard(step)
            self.clock.logged(step)

    def end(self):
        self.clock._write()
        return attempts.read(self.clock._run_dir)


def spent(found):
    seconds = attempts.summarize(found).seconds
    return {kind: seconds[kind] for kind in ("steps", "skipped", "lost")}


def test_bad_steps_and_those_that_a_roll_back_takes_along_are_skipped_once(tmp_path, monkeypatch):
    run = Steps(tmp_path, 0, monkeypatch)
    run.do(1, 11, bad=(9, 10, 11))
    run.clock.rolled_back(4)
    found = run.end()
    assert (found[0].step, spent(found)) == (4, pytest.approx({"steps": 4.0, "skipped": 7.0, "lost": 0.0}))
    run.do(5, 20, bad=(17,))
    assert spent(run.end()) == pytest.approx({"steps": 19.0, "skipped": 8.0, "lost": 0.0})
    assert attempts.summarize(run.end()).lost_steps == 0


def test_a_roll_back_to_before_the_attempt_takes_from_the_one_before(tmp_path, monkeypatch):
    Steps(tmp_path, 0, monkeypatch).do(1, 50)
    run = Steps(tmp_path, 50, monkeypatch)
    run.do(51, 53, bad=(51, 52, 53))
    run.clock.rolled_back(40)
    run.do(41, 45, bad=(45,))
    found = run.end()
    assert [(one.first_step, one.step) for one in found] == [(0, 50), (40, 45)]
    assert spent(found) == pytest.approx({"steps": 40.0 + 4.0, "skipped": 3.0 + 1.0, "lost": 10.0})
    assert attempts.summarize(found).lost_steps == 10


@pytest.mark.parametrize(
    "wrong",
    [
        {"started": None},
        {"step": "x"},
        {"step": float("inf")},
        {"first_step": []},
        {"seconds": {"steps": "a"}},
        {"seconds": {"steps": float("nan")}},
        {"step_seconds": "x"},
        {"save_stalls": [float("inf")]},
        {"ended": {}},
    ],
)
def test_a_file_with_other_types_is_left_out(tmp_path, wrong):
    path = attempts.path(epath.Path(tmp_path), 1)
    path.parent.mkdir()
    whole = vars(attempt(1, 0, 3, 0.0, 1.0))
    path.write_text(json.dumps(whole))
    assert len(attempts.read(tmp_path)) == 1
    path.write_text(json.dumps(whole | wrong))
    assert attempts.read(tmp_path) == []


def test_the_writer_and_the_reader_agree(tmp_path):
    began = time.time() - 3
    with pytest.raises(OSError), Goodput(epath.Path(tmp_path), began) as clock:
        with clock.during("restore"):
            time.sleep(0.02)
        clock.begin(4)
        with clock.during("steps"):
            for step in (5, 6, 7):
                time.sleep(0.01)
                with clock.save_stall():
                    time.sleep(0.03)
                shown = clock.logged(step).goodput
            clock.discard(7)
        raise OSError(errno.ENOSPC, "full")
    (found,) = attempts.read(tmp_path)
    assert (found.number, found.first_step, found.step, found.exit_code) == (1, 4, 7, exit_codes.IO)
    assert found.started == began and found.ended == pytest.approx(found.last_seen, abs=0.1)
    assert 3 <= found.seconds["startup"] < 4 and found.seconds["restore"] >= 0.02 and found.seconds["save"] >= 0.09
    assert found.seconds["skipped"] == pytest.approx(found.seconds["steps"] / 2, rel=0.1)
    productive, total = found.seconds["steps"] + found.seconds["skipped"], sum(found.seconds.values())
    assert 0.03 / total <= shown <= productive / total  # the writing of the last line counts as steps, too
    assert 0.01 <= found.step_seconds < productive and len(found.save_stalls) == 3
    summary = attempts.summarize([found])
    assert summary.save_stall == pytest.approx(0.03, abs=0.02) and summary.save_stall_share > 1
    assert sum(summary.seconds.values()) == pytest.approx(summary.wall_seconds)

    second = Goodput(epath.Path(tmp_path), time.time())
    second.begin(6)  # as if killed right after
    assert [(a.number, a.ended) for a in attempts.read(tmp_path)][1] == (2, None)
    (tmp_path / "attempts/001.json").write_text("{")
    (tmp_path / "attempts/notes.txt").write_text("")
    assert [a.number for a in attempts.read(tmp_path)] == [2] and attempts.read(tmp_path / "nowhere") == []
    third = Goodput(epath.Path(tmp_path), time.time())
    third.begin(6)
    assert sorted(p.name for p in (tmp_path / "attempts").glob("0*")) == ["001.json", "002.json", "003.json"]


def test_processes_other_than_the_first_keep_time_and_write_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clock = Goodput(None)
    clock.begin(0)
    with clock.during("steps"):
        assert 0 < clock.logged(1).goodput < 1
    clock.end(exit_codes.OK)
    assert attempts.summarize([]) is None


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError(), exit_codes.USAGE),
        (FileNotFoundError(), exit_codes.USAGE),
        (OSError("sentence"), exit_codes.IO),
        (OSError(errno.EROFS, "read-only"), exit_codes.USAGE),
        (KeyboardInterrupt(), exit_codes.SIGINT),
        (SystemExit(7), 7),
        (RuntimeError(), exit_codes.BUG),
    ],
)
def test_exit_codes_of_exceptions(error, code):
    assert exit_codes.of(error) == code


def test_the_hash_of_a_batch_depends_on_its_sequences_and_their_order_only():
    tokens = np.random.default_rng(0).integers(0, 50, (8, 6)).astype(np.int32)

    def hashed(rows, microbatch, tokens=tokens):
        parts = tokens.reshape(-1, microbatch, 6)[:, rows]
        hashes = BatchHashes(np.asarray(rows), microbatch)
        batch = of_sequences(parts)
        assert next(hashes.watched([batch])) is batch
        return hashes.combined(hashes.popped())

    assert hashed(range(8), 8) == hashed(range(4), 4) == hashed(range(2), 2)
    assert hashed(range(8), 8) != hashed(range(8), 8, tokens[[1, 0, *range(2, 8)]])
    changed = tokens.copy()
    changed[5, 3] += 1
    assert hashed(range(8), 8) != hashed(range(8), 8, changed)
    assert json.dumps(hashed(range(8), 8))
