"""A place of ``--target=tpu_vm`` and what goes wrong around it, without processes."""

import dataclasses
import json
from pathlib import Path

import pytest
from etils import epath

from launch import gcloud, jobs, slot, state, tpu_vm
from launch.gcloud import LOST, NOT_FOUND, Gcloud, GcloudError
from launch.jobs import Launch
from launch.restarts import Restarts
from launch.slices import Slices
from scaling import config as cfg
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
    with pytest.raises(ValueError, match="gcloud is not installed"):
        gcloud.state(Gcloud("z"), "a")
    with pytest.raises(ValueError, match="gcloud is not installed"):
        gcloud.names(Gcloud("z"))


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
    options = dict.fromkeys(tpu_vm._KEPT, "") | {"max_restarts": 5}
    known = tpu_vm.planned(launch, options, 1, {})
    known["slots"][0]["stage"] = slot.PREPARING
    state.write(epath.Path("runs/small"), known)
    jobs.write_plans(launch, launch.state_folder)
    again = tpu_vm.planned(launch, options, 1, state.read("runs/small"))
    assert again["id"] == known["id"]
    other = dataclasses.replace(config, seed=config.seed + 1)
    changed = dataclasses.replace(launch, runs=(single(other, "small"),))
    with pytest.raises(ValueError, match="other knobs"):
        tpu_vm.planned(changed, options, 1, state.read("runs/small"))
    known["slots"][0]["stage"] = slot.ABSENT
    assert tpu_vm.planned(changed, options, 1, known)["id"] != known["id"]
    assert cfg.to_json(other) != cfg.to_json(config)
