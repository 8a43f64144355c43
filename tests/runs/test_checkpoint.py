import json
import logging
import time

import jax
import numpy as np
import pytest
from etils import epath

from scaling.config import schema as cfg
from scaling.model.fused import fused
from scaling.parallel.mesh import make_mesh
from scaling.runs import stores
from scaling.runs.checkpoint import META, Checkpoints, DamagedCheckpoint, verify
from scaling.train import state as train_state
from tests import tiny

CONFIG = tiny.config()


@pytest.fixture(scope="module")
def state():
    return train_state.create_state(CONFIG, make_mesh(cfg.Mesh(fsdp=4, tensor=2)))


@pytest.fixture
def saved(tmp_path, state):
    """A run with whole checkpoints of steps 1 and 2."""
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, state, {"note": f"step {step}"})
    checkpoints.wait()
    yield checkpoints
    checkpoints.close()


def restore(checkpoints, mesh=None, devices=8):
    target = train_state.abstract_state(CONFIG, make_mesh(mesh or cfg.Mesh(), jax.devices()[:devices]))
    found = checkpoints.newest_whole()
    return found and (checkpoints.read_state(found[0], target), found[1])


def files(checkpoints, step):
    folder = checkpoints.directory / f"{step:09d}"
    return [p for pattern in ("*/*", "*/d/*") for p in sorted(folder.glob(pattern)) if not p.is_dir()]


@pytest.mark.parametrize(("devices", "mesh"), [(1, cfg.Mesh()), (2, cfg.Mesh(tensor=2)), (8, cfg.Mesh(fsdp=8))])
def test_restores_every_bit_onto_another_mesh(saved, state, devices, mesh):
    restored, meta = restore(saved, mesh, devices)
    assert meta["step"] == 2 and meta["note"] == "step 2" and int(restored["step"]) == 2
    jax.tree.map(np.testing.assert_array_equal, restored["params"], state["params"])
    jax.tree.map(np.testing.assert_array_equal, restored["optimizer"], state["optimizer"])
    assert restored["params"]["tokens"].sharding.mesh.size == devices


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def zero(path):
    path.write_bytes(bytes(len(path.read_bytes())))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def delete(path):
    path.unlink()


@pytest.mark.parametrize("damage", [truncate, zero, flip, delete])
def test_any_damaged_file_is_named_and_the_step_before_is_used(saved, caplog, damage):
    caplog.set_level(logging.WARNING)
    folder = saved.directory / "000000002"
    victims = [p for p in files(saved, 2) if p.stat().length > 0]
    assert len(victims) > 6
    for victim in victims:
        before = victim.read_bytes()
        damage(victim)
        with pytest.raises(DamagedCheckpoint, match=victim.name):
            verify(folder)
        victim.write_bytes(before)
    verify(folder)
    damage(victims[len(victims) // 2])
    logger = logging.getLogger("scaling")
    logger.propagate = True
    _, meta = restore(saved)
    assert meta["step"] == 1
    assert "checkpoint of step 2 passed over" in caplog.text and victims[len(victims) // 2].name in caplog.text


@pytest.mark.parametrize("name", ["meta.json", "checksums-00000.json"])
def test_a_step_without_its_marks_is_unfinished(saved, name):
    (saved.directory / "000000002" / name).unlink()
    with pytest.raises(DamagedCheckpoint, match="unfinished"):
        verify(saved.directory / "000000002")
    assert restore(saved)[1]["step"] == 1
    (saved.directory / "000000001" / name).write_text("{")
    with pytest.raises(ValueError, match=r"none .*\[1, 2\]"):
        restore(saved)


def test_an_empty_or_foreign_folder_is_not_a_checkpoint(saved, state):
    (saved.directory / "000000009").mkdir()
    (saved.directory / "notes").mkdir()
    (saved.directory / "000000003").write_text("no folder")
    (saved.directory / "000000010.orbax-checkpoint-tmp").mkdir()
    assert restore(saved)[1]["step"] == 2
    saved.save(3, state, {"note": "in its place"})
    saved.wait()
    assert restore(saved)[1]["note"] == "in its place"
    assert (saved.directory / "000000003.damaged").read_text() == "no folder"


def test_nothing_saved_is_no_checkpoint(tmp_path):
    assert restore(Checkpoints(tmp_path)) is None


def test_keep_last_and_keep_every(tmp_path, state):
    checkpoints = Checkpoints(tmp_path, cfg.Checkpoint(keep_last=2, keep_every_steps=4))
    for step in range(1, 8):
        checkpoints.save(step, state, {})
    checkpoints.close()
    assert checkpoints.steps() == [4, 6, 7]


def validated(folder, **losses):
    """An ``evals.jsonl`` with the losses of steps, and lines of tasks, which are no validations."""
    lines = [{"step": int(name[1:]), "loss": value} for name, value in losses.items()]
    lines += [{"step": 1, "task": "t", "loss": 0.0}, {"step": 2, "task": "t", "shots": 0, "scores": {}}]
    (folder / "evals.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_best_by_its_validation_is_kept_and_chosen(tmp_path, state, caplog):
    """Of equal ones the earlier; a step that is not a number or was saved among bad steps is never the best."""
    checkpoints = Checkpoints(tmp_path, cfg.Checkpoint(keep_last=1, choose="loss"))
    bad = {**state, "guard": state["guard"] | {"in_a_row": state["guard"]["in_a_row"] + 1}}
    kept = []
    validated(tmp_path, s1=float("nan"), s2=3.0, s3=2.0, s4=2.0, s5=1.0, s6=2.5, s9=0.5)
    for step in range(1, 7):
        checkpoints.save(step, bad if step == 5 else state, {})
        checkpoints.wait()
        kept.append(checkpoints.steps())
    assert kept == [[1], [2], [3], [3, 4], [3, 4, 5], [3, 6]]
    assert checkpoints.chosen("loss")[0] == 3 and checkpoints.chosen("")[0] == 6
    assert checkpoints.newest_whole()[0] == 6  # from which training goes on
    logging.getLogger("scaling").propagate = True
    flip(files(checkpoints, 3)[0])
    assert checkpoints.chosen("loss")[0] == 6 and "checkpoint of step 3 passed over" in caplog.text
    assert checkpoints.chosen("reward")[0] == 6 and "no checkpoint has a validation reward" in caplog.text
    checkpoints.close()


def test_nothing_is_deleted_while_the_best_is_not_known(tmp_path, state):
    checkpoints = Checkpoints(tmp_path, cfg.Checkpoint(keep_last=1, choose="loss"))
    (tmp_path / "evals.jsonl").write_text('{"step": 1, "lo\n{"step": 2, "loss": 1.0}\n')
    for step in (1, 2, 3):
        checkpoints.save(step, state, {})
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2, 3]
    with pytest.raises(ValueError, match=r"evals\.jsonl:1 is not JSON"):
        checkpoints.chosen("loss")
    checkpoints.close()


def test_the_last_step_outside_of_bad_ones_is_kept(tmp_path, state):
    """A signal forces a save among bad steps; the run must still find what it is to be rolled back to."""
    checkpoints = Checkpoints(tmp_path, cfg.Checkpoint(keep_last=1))
    bad = {**state, "guard": state["guard"] | {"in_a_row": state["guard"]["in_a_row"] + 1}}
    for step, saved in ((1, state), (2, state), (3, bad), (4, bad)):
        checkpoints.save(step, saved, {})
    checkpoints.wait()
    assert checkpoints.steps() == [2, 4] and checkpoints.newest_whole(good=True)[0] == 2
    checkpoints.tidy(whole=4)
    assert checkpoints.steps() == [2, 4]
    checkpoints.set_aside_after(2)
    assert checkpoints.steps() == [2]
    checkpoints.save(5, state, {})
    checkpoints.close()
    assert checkpoints.steps() == [5]


@pytest.mark.parametrize("name", ["7", "\u00b2", "0000000003"])
def test_folders_with_other_names_are_no_steps(saved, state, name):
    (saved.directory / name).mkdir()
    assert saved.steps() == [1, 2] and saved.newest_whole()[0] == 2
    saved.tidy(whole=2)
    saved.save(4, state, {})
    saved.wait()
    assert (saved.directory / name).is_dir()


def test_a_damaged_step_reached_again_is_set_aside(saved, state):
    for note in ("again", "and again"):
        flip(files(saved, 2)[-1])
        saved.save(2, state, {"note": note})
        saved.wait()
        assert restore(saved)[1]["note"] == note
    assert [(saved.directory / f"000000002.damaged{n}").exists() for n in ("", "-2", "-3")] == [True, True, False]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"processes": 0}, "how many processes"),
        ({"processes": "1"}, "how many processes"),
        ([], "how many processes"),
    ],
)
def test_a_meta_of_another_kind_is_damage(saved, wrong, sentence):
    """Zero processes would have meant no checksums to compare."""
    path = saved.directory / "000000002/meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **wrong} if wrong else wrong))
    with pytest.raises(DamagedCheckpoint, match=sentence):
        verify(path.parent)
    assert restore(saved)[1]["step"] == 1


def test_checksums_that_leave_meta_out_and_a_step_under_another_name_are_damage(saved):
    step = saved.directory / "000000002"
    (saved.directory / "000000001").rename(saved.directory / "000000003")
    with pytest.raises(DamagedCheckpoint, match=r"000000003 .*step 1 "):
        verify(saved.directory / "000000003")
    (step / "checksums-00000.json").write_text("{}")
    with pytest.raises(DamagedCheckpoint, match=r"checksums-00000\.json .*meta\.json is not in it"):
        verify(step)
    (step / "checksums-00000.json").write_text("[1, 2]")
    with pytest.raises(DamagedCheckpoint, match=r"checksums-00000\.json is damaged"):
        verify(step)


def test_the_only_checkpoint_without_its_meta_is_no_fresh_start(tmp_path, state):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {})
    checkpoints.close()
    (checkpoints.directory / "000000001/meta.json").unlink()  # a save writes it before the checksums
    with pytest.raises(ValueError, match=r"none .*\[1\]"):
        restore(Checkpoints(tmp_path))


def test_what_a_killed_deletion_left_is_deleted_later(tmp_path, state):
    checkpoints = Checkpoints(tmp_path, cfg.Checkpoint(keep_last=2))
    for step in (1, 2, 3):
        checkpoints.save(step, state, {})
        checkpoints.wait()
    left = checkpoints.directory / "000000001"
    for name in ("params/d", "notes"):  # half of a step
        (left / name).mkdir(parents=True)
    (checkpoints.directory / "000000002/checksums-00000.json").unlink()  # the next to go
    assert restore(checkpoints)[1]["step"] == 3
    checkpoints.tidy(3)
    assert checkpoints.steps() == [3]
    left.mkdir()
    checkpoints.save(4, state, {})
    checkpoints.close()
    assert checkpoints.steps() == [3, 4]


def test_tidying_makes_room_and_never_takes_the_step_that_is_used(tmp_path, state):
    checkpoints = Checkpoints(tmp_path, cfg.Checkpoint(keep_last=4))
    for step in (1, 2, 3, 4):
        checkpoints.save(step, state, {})
    checkpoints.close()
    flip(files(checkpoints, 4)[-1])
    (checkpoints.directory / "000000009.orbax-checkpoint-tmp").mkdir()
    fewer = Checkpoints(tmp_path, cfg.Checkpoint(keep_last=1))
    fewer.tidy(None)  # nothing is known to be whole: nothing but the temporary folder goes
    assert fewer.steps() == [1, 2, 3, 4] and len(list(fewer.directory.iterdir())) == 4
    fewer.tidy(fewer.newest_whole()[0])
    assert fewer.steps() == [3, 4]


def test_files_are_on_disk_before_the_checksums_that_commit_them(tmp_path, state, monkeypatch):
    """And the checksums before an older step goes: a loss of power never leaves less than a kill."""
    checkpoints, done = Checkpoints(tmp_path, cfg.Checkpoint(keep_last=1)), []
    checkpoints.save(1, state, {})
    checkpoints.wait()
    monkeypatch.setattr("scaling.durable._fsync", lambda path: done.append(str(path)))
    replace, rmtree = type(checkpoints.directory).replace, type(checkpoints.directory).rmtree
    monkeypatch.setattr(type(checkpoints.directory), "replace", lambda a, b: (done.append(f"-> {b}"), replace(a, b))[1])
    monkeypatch.setattr(type(checkpoints.directory), "rmtree", lambda path: (done.append(f"x {path}"), rmtree(path))[1])
    checkpoints.save(2, state, {})
    checkpoints.close()
    new, marks = (
        checkpoints.directory / "000000002",
        [i for i, what in enumerate(done) if "checksums-00000.json" in what],
    )
    for file in [*files(checkpoints, 2), new / "params/d", new / "params", new]:
        assert file.name == "checksums-00000.json" or done.index(str(file)) < marks[0], file
    assert done[marks[0]].endswith("checksums-00000.json.partial") and done[marks[1]].startswith("->")
    gone = next(i for i, what in enumerate(done) if what.startswith("x ") and what.endswith("000000001"))
    assert marks[1] < done.index(str(new), marks[1]) < gone


def test_a_save_that_fails_says_where_and_keeps_the_last_good_one(saved, state, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(saved.directory), "write_text", full)
    with pytest.raises(OSError, match=r"step 3 .*No space left.*step 2"):
        saved.save(3, state, {})
        saved.wait()
    monkeypatch.undo()
    saved.close()
    assert restore(Checkpoints(saved.directory.parent))[1]["step"] == 2


def test_parameters_alone(saved, state):
    step, meta = saved.newest_whole()
    params = saved.read_params(step, train_state.abstract_state(CONFIG, make_mesh(cfg.Mesh()))["params"])
    jax.tree.map(np.testing.assert_array_equal, params, state["params"])
    assert json.dumps(meta)


def test_parameters_are_read_where_they_are_sliced(saved, state):
    """Of a checkpoint whose arrays lie in the shards of eight devices."""
    opened = saved.open_params(2, state["params"])
    assert opened.keys() == stores.by_path(state["params"]).keys()
    for name, whole in stores.by_path(state["params"]).items():
        array = opened[name]
        assert array.shape == whole.shape and 1 <= array.rows_at_once <= len(array)
        np.testing.assert_array_equal(array[1:], np.asarray(whole)[1:])


@pytest.mark.parametrize(("devices", "mesh"), [(1, cfg.Mesh()), (8, cfg.Mesh(fsdp=4, tensor=2))])
def test_parameters_that_come_in_parts_are_those_of_a_step(tmp_path, state, devices, mesh):
    checkpoints = Checkpoints(tmp_path)
    later = jax.tree.map(lambda x: stores.Later(x.shape, (1, *x.shape[1:])), state["params"])

    def fill(arrays):
        for name, whole in stores.by_path(state["params"]).items():
            for row, part in enumerate(np.asarray(whole)):
                arrays[name][row] = part

    checkpoints.save_filled(0, later, {"note": "parts"}, fill)
    step, meta = checkpoints.newest_whole()  # its checksums are there, and right
    assert (step, meta["note"], meta["guard"]) == (0, "parts", {})
    target = train_state.abstract_state(CONFIG, make_mesh(mesh, jax.devices()[:devices]))["params"]
    jax.tree.map(np.testing.assert_array_equal, checkpoints.read_params(0, target), state["params"])
    opened = checkpoints.open_params(0, target)
    assert {array.rows_at_once for array in opened.values()} == {1}
    checkpoints.close()


def test_parts_that_cannot_be_had_leave_no_step(tmp_path, state):
    checkpoints = Checkpoints(tmp_path)
    later = jax.tree.map(lambda x: stores.Later(x.shape, x.shape), state["params"])

    def wrong(arrays):
        raise ValueError("a tensor is missing")

    with pytest.raises(ValueError, match=r"^a tensor is missing$"):
        checkpoints.save_filled(0, later, {}, wrong)
    assert not checkpoints.steps()
    with pytest.raises(OSError, match="step 0 could not be written"):
        checkpoints.save_filled(0, later, {}, lambda arrays: arrays["tokens"].__setitem__(0, "no number"))
    assert not checkpoints.steps()


def test_parameters_of_format_1_are_read_at_once(tmp_path, state):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"params": fused(jax.device_get(state["params"])), "guard": {}}, {})
    checkpoints.wait()
    path = checkpoints.directory / "000000001" / META
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
    opened = checkpoints.open_params(1, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state["params"]))
    expected = stores.by_path(state["params"])
    assert opened.keys() == expected.keys()
    for name, whole in expected.items():
        np.testing.assert_array_equal(opened[name], whole)
    checkpoints.close()


def test_large_and_small_files_hash_alike(tmp_path):
    import hashlib

    from scaling.runs.checkpoint import _sha256

    data = np.random.default_rng(0).bytes(9_000_000)
    path = epath.Path(tmp_path / "file")
    path.write_bytes(data)
    assert _sha256(path) == hashlib.sha256(data).hexdigest()


def test_a_folder_that_makes_nothing_is_said_at_once(tmp_path, state):
    """Orbax by itself would wait five minutes for the folder that it asked for."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {})
    checkpoints.wait()
    (checkpoints.directory / ".writable-0").mkdir()  # stands for a folder that has become read-only
    start = time.monotonic()
    with pytest.raises(OSError, match=r"step 2 .*written"):
        checkpoints.save(2, state, {})
        checkpoints.wait()
    assert time.monotonic() - start < 60
    checkpoints.close()
