"""A place of ``--target=tpu_vm`` and what goes wrong around it, without processes."""

import dataclasses
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from etils import epath

from launch import gcloud, jobs, slot, state, tpu_vm
from launch.gcloud import LOST, NOT_FOUND, REFUSED, Gcloud, GcloudError
from launch.jobs import Launch
from launch.restarts import Restarts
from launch.settings import Settings
from launch.slices import Slices
from scaling import exit_codes
from scaling.config import schema as cfg
from scaling.sweep.plan import single
from tests import tiny


@pytest.fixture
def place(monkeypatch):
    """A slot on a cloud that makes machines at once, on which nothing can be done over ssh."""
    made, said = [], []
    exists = [False]

    def run(arguments, seconds=0.0):
        verb = arguments[4]
        if verb == "create":
            made.append(arguments[5])
            exists[0] = True
        elif verb == "delete":
            exists[0] = False
        elif verb == "describe":
            if not exists[0]:
                raise GcloudError(NOT_FOUND, "NOT_FOUND")
            return json.dumps({"state": {"state": "ACTIVE"}})
        elif verb in ("scp", "ssh"):
            raise GcloudError(LOST, "pip: no route to host")
        return ""

    monkeypatch.setattr(gcloud, "run", run)
    job = {"name": "a", "attempts": 1, "state": "waiting", "restarts": dataclasses.asdict(Restarts())}
    waiting, saved = [job], []
    values = {"resource": "a-0", "stage": slot.ABSENT, "job": "", "offset": 0, "hosts": 0}
    request = slot.Request(
        Gcloud("z"), Slices("v5e:2x2"), "image", {}, "folder", Path("archive.tar.gz"), lost_seconds=0.0
    )

    def save():
        if saved and saved[0] == "full":
            raise OSError(28, "No space left on device")

    counts = Restarts(most=3, first_delay=0.0)
    found = slot.Slot(
        values, request, counts, lambda: waiting.pop() if waiting else None, lambda name: job, save, said.append, None
    )
    found.made, found.said, found.known, found.saved, found.exists = made, said, job, saved, exists
    return found


def test_machines_on_which_nothing_can_be_installed_are_not_made_for_ever(place):
    for _ in range(200):
        place.tick(stopping=False)
    assert place.idle and not place.exists[0] and len(place.made) == 4
    assert place.known["state"] == "failed" and "no answer" in place.known["reason"]


def test_a_full_disk_here_leaves_no_machines_alone(place):
    while place.stage != slot.PREPARING:
        place.tick(stopping=False)
    place.saved.append("full")
    for _ in range(20):
        place.tick(stopping=False)
    assert any("No space left" in text for text in place.said)
    place.saved.clear()
    for _ in range(200):
        place.tick(stopping=False)
    assert place.idle and not place.exists[0]


def test_nothing_is_made_whose_name_is_not_on_disk(place):
    place.saved.append("full")
    for _ in range(20):
        place.tick(stopping=False)
    assert place.made == []


def test_without_gcloud_nothing_is_tried_again(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ValueError, match=r"gcloud.* installed"):
        gcloud.state(Gcloud("z"), "a")
    with pytest.raises(ValueError, match=r"gcloud.* installed"):
        gcloud.names(Gcloud("z"))


@pytest.mark.parametrize(
    ("verb", "printed", "kind"),
    [
        ("ssh", "PERMISSION_DENIED: gs://bucket/small\nERROR: (gcloud.compute) [ssh] exited with code [1].", LOST),
        ("scp", "scp: Quota exceeded\nERROR: (gcloud.compute) [scp] exited with code [1].", LOST),
        ("ssh", "ERROR: (gcloud.compute) PERMISSION_DENIED: the caller does not have permission", REFUSED),
        ("ssh", "motd\nERROR: (gcloud.compute) the request failed:\n  code: PERMISSION_DENIED\nbye", REFUSED),
        ("ssh", "ERROR: (gcloud.compute) [ssh] exited with code [1].\nPERMISSION_DENIED", LOST),
        ("create", "ERROR: (gcloud.compute) the request failed:\n  code: PERMISSION_DENIED", REFUSED),
    ],
)
def test_what_machines_print_is_not_taken_for_what_gcloud_says(tmp_path, monkeypatch, verb, printed, kind):
    program = tmp_path / "gcloud"
    program.write_text(f"#!/bin/sh\necho '{printed}' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(GcloudError) as caught:
        gcloud.run(["gcloud", "compute", "tpus", "queued-resources", verb, "a"])
    assert caught.value.kind == kind


class Place:
    """Stands for a slot: takes a run, and is done with it once ``released``."""

    def __init__(self, name, jobs, released):
        self.name, self.stage, self._jobs, self._released = name, slot.ABSENT, jobs, released
        self.fails = False

    @property
    def idle(self):
        return self.stage == slot.ABSENT

    def tick(self, stopping):
        if self.fails:
            raise ValueError("gcloud refuses: no")
        if self.stage == slot.ABSENT and not stopping:
            self.job = next(job for job in self._jobs.values() if job["state"] == "waiting")
            self.job["state"], self.stage = "running", slot.RUNNING
        else:
            assert self._released.wait(30)
            self.job["state"], self.stage = "finished", slot.ABSENT


@pytest.fixture
def places(tmp_path):
    """A launcher of three runs in two places, the first of which takes until its event is set."""
    jobs = {name: {"state": "waiting", "exit_code": None} for name in "abc"}
    launcher = tpu_vm.Launcher(
        epath.Path(tmp_path),
        {"id": "x", "slots": [], "jobs": jobs, "cloud": dict.fromkeys(tpu_vm._KEPT, "") | {"labels": {}}},
        Settings(),
        poll_seconds=0.01,
    )
    event, free = threading.Event(), threading.Event()
    free.set()
    launcher.slots = [Place("a-0", jobs, event), Place("a-1", jobs, free)]
    launcher._sweep_up = lambda: None
    return launcher, event


def test_a_place_that_takes_long_does_not_hold_up_the_others(places):
    launcher, event = places
    jobs = launcher.values["jobs"]

    def release():
        until = time.monotonic() + 20
        while sum(job["state"] == "finished" for job in jobs.values()) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        seen.append([job["state"] for job in jobs.values()])
        event.set()

    seen = []
    other = threading.Thread(target=release)
    other.start()
    assert launcher.run() == 0
    other.join()
    assert sorted(seen[0]) == ["finished", "finished", "running"]


def test_warnings_stop_the_launcher_as_an_order_does_and_count_once(places):
    """Slurm and the kernel repeat them; a second order would leave machines behind."""
    launcher, event = places

    def warn():
        while launcher.values["jobs"]["a"]["state"] == "waiting":
            time.sleep(0.01)
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.05)
        event.set()

    other = threading.Thread(target=warn)
    other.start()
    assert launcher.run() == exit_codes.SIGUSR1
    other.join()
    assert all(place.stage == slot.ABSENT for place in launcher.slots)
    launcher._note(signal.SIGTERM, None)
    launcher._note(signal.SIGHUP, None)
    assert launcher._asked == [signal.SIGUSR1, signal.SIGTERM]


def test_a_place_that_is_refused_ends_the_others_too(places):
    launcher, event = places
    launcher.slots[1].fails = True
    event.set()
    launcher.values["jobs"]["b"]["state"] = "finished"
    with pytest.raises(ValueError, match="gcloud refuses"):
        launcher.run()


def test_what_gcloud_does_not_list_is_not_taken_for_nothing(monkeypatch):
    def lost(arguments, seconds=0.0):
        raise GcloudError(LOST, "connection refused")

    monkeypatch.setattr(gcloud, "run", lost)
    with pytest.raises(GcloudError):
        tpu_vm.left_over(Gcloud("z"), "abc")


def test_other_knobs_for_machines_that_exist_are_refused(tmp_path, monkeypatch):
    """They have the old plan, and would go on with it."""
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(tiny.config(), workdir="gs://bucket/small")
    launch = Launch("small", config.workdir, (single(config, "small"),), False)
    options = dict.fromkeys(tpu_vm._KEPT, "") | {"max_restarts": 5, "first_delay": 1.0}
    known = tpu_vm.planned(launch, options, 1, {})
    known["slots"][0]["stage"] = slot.PREPARING
    state.write(epath.Path("runs/small"), known)
    jobs.write_plans(launch)
    again = tpu_vm.planned(launch, options, 1, state.read("runs/small"))
    assert again["id"] == known["id"]
    other = dataclasses.replace(config, seed=config.seed + 1)
    changed = dataclasses.replace(launch, runs=(single(other, "small"),))
    with pytest.raises(ValueError, match="other knobs"):
        tpu_vm.planned(changed, options, 1, state.read("runs/small"))
    known["slots"][0]["stage"] = slot.ABSENT
    assert tpu_vm.planned(changed, options, 1, known)["id"] != known["id"]
    assert cfg.to_json(other) != cfg.to_json(config)
